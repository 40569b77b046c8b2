"""Decode steps that are begun before the tokens of the one before are known on the host: the device never waits for Python.

When a step has drawn its tokens on the device, the next step of the same requests is given to the device at once, with those tokens as its
input, and only then the host waits for the tokens. What the next plan then asks for is mostly computed already. What turns out otherwise
(a request has ended, or goes on with another token than the one drawn) is left out: its keys and values are in no page that anybody reads,
for the page table and the count of computed tokens do not know of them, and whoever gets the page writes it later on the same stream.

Where graphs draw, such a step is drawn, too, by what its requests draw with, and its logits are looked at only where a plan asks for other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import DirectDraws, DrawInto
from compute_svc.engine.steps.decode_graphs import DecodeGraphs, DecodeRows, page_columns
from compute_svc.engine.steps.drawing_graphs import DrawingGraphs, RowDraws
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.layers.forward_batch import ForwardOutput
from compute_svc.scheduler.base import Plan
from compute_svc.scheduler.kv_memory import KvMemory

_Array = npt.NDArray[np.int64]


class Computed(NamedTuple):
    """What a plan gave.

    Attributes:
        output: Logits and hidden states.
        found: [2, rows] int64, what `DirectDraws.find` gives of the rows; None = nothing is drawn yet. Beginning the next step may write it and
            the logits.
    """

    output: ForwardOutput
    found: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class _Ahead:
    """Rows that are computed in advance.

    Attributes:
        rows: [n] batch slots.
        numbers: [n], whose requests they are.
        kv_lengths: [n], the token itself included.
        places: [n], which rows of the step before they go on from.
        tokens: [n], those that they are computed for; None until the host knows them.
        logits: [n, width] float32.
        found: [2, n] int64, see `Computed`; None = they are not drawn.
        is_kept: Whether another run of a graph leaves the logits as they are.
    """

    rows: _Array
    numbers: _Array
    kv_lengths: _Array
    places: _Array
    tokens: _Array | None
    logits: torch.Tensor
    found: torch.Tensor | None
    is_kept: bool


class RunAhead:
    """Computes plans: decode rows by graphs, one step ahead, and all else as it comes.

    Args:
        graphs: Of decode steps.
        memory: Pages and batch slots of the requests.
        page_size_tokens: Tokens of a page.
        device: Where the model is.
        keeps_logits: Whether logits are looked at after the next step is begun, though the rows are drawn.
    """

    def __init__(
        self, graphs: DecodeGraphs, memory: KvMemory, page_size_tokens: int, device: torch.device, *, keeps_logits: bool = False
    ) -> None:
        self._graphs = graphs
        self._memory = memory
        self._page_size = page_size_tokens
        self._device = device
        self._keeps_logits = keeps_logits
        self._ahead: _Ahead | None = None

    @property
    def draw_into(self) -> DrawInto | None:
        """What draws in graphs; None = nothing does."""
        return self._graphs.draw_into if isinstance(self._graphs, DrawingGraphs) else None

    def forward(self, plan: Plan, compute: Callable[[Plan], ForwardOutput]) -> Computed:
        """What a plan that is not empty asks for.

        Args:
            plan: Of the scheduler.
            compute: Computes one in the ordinary way.
        """
        ahead, self._ahead = self._ahead, None
        taken = None if ahead is None else self._taken(ahead, plan.rows)
        if ahead is None or taken is None:
            return Computed(compute(plan) if plan.prefills else ForwardOutput(self._run(plan.rows), None))
        covered, places = taken
        logits, found, is_kept = ahead.logits, ahead.found, ahead.is_kept
        if len(places) != len(ahead.rows) or (places != np.arange(len(places))).any():
            chosen = to_device([places], self._device)[0]
            logits, found, is_kept = logits.index_select(0, chosen), None if found is None else found.index_select(1, chosen), True
        if len(covered) == len(plan.rows) and not plan.prefills:
            return Computed(ForwardOutput(logits, None), found)
        return Computed(self._with_rest(plan, covered, logits if is_kept else logits.clone(), compute))

    def begin(self, rows: _Array, tokens: torch.Tensor, direct: DirectDraws | None) -> None:
        """Begins the next step of requests whose last known token was just computed, as far as each goes on and finds a page.

        Args:
            rows: [n] their batch slots.
            tokens: [n] int64 on the device, drawn behind the last known ones.
            direct: How they draw; None = not all of them directly.

        Effects: takes pages for the tokens; `know` must follow.
        """
        slots = self._memory.slots
        goes_on = slots.go_on(rows)
        lengths = slots.num_tokens[rows] - slots.dropped_tokens[rows] + 1
        lacking = goes_on & (lengths > slots.tables.lengths[rows] * self._page_size)
        if not self._memory.grow_all(rows[lacking]):
            goes_on &= ~lacking
        places = goes_on.nonzero()[0]
        if not places.size:
            return
        # Of the rows that go on: which, of whose requests, and what they compute.
        chosen, lengths = rows[places], lengths[places]
        step, some = self._decode_rows(chosen, slots.num_tokens[chosen], lengths), None if len(places) == len(rows) else places
        found, is_kept = None, True
        if direct is not None and isinstance(self._graphs, DrawingGraphs):
            positions = slots.num_tokens[chosen] - slots.prompt_tokens[chosen] + 1
            draws = RowDraws(direct if some is None else direct.some(places), positions)
            logits, found = self._graphs.step(step, tokens, some, draws)
            # A row that is not decided is looked at again when the host knows that.
            is_kept = self._keeps_logits or not direct.is_decided
            logits = logits.clone() if is_kept else logits
        else:
            logits = self._graphs.run(step, tokens, some)
        self._ahead = _Ahead(chosen, slots.number[chosen], lengths, places, None, logits, found, is_kept)

    def know(self, tokens: _Array) -> None:
        """The tokens that `begin` got, [n], as the host has read them."""
        if self._ahead is not None:
            self._ahead.tokens = tokens[self._ahead.places]

    def drop(self) -> None:
        """Nothing that is computed in advance is wanted any more."""
        self._ahead = None

    def _taken(self, ahead: _Ahead, rows: _Array) -> tuple[_Array, _Array] | None:
        """Which of a plan's decode rows are computed, and where among those in advance; None = none."""
        slots = self._memory.slots
        if ahead.tokens is None:
            return None
        place_of = np.full(len(slots.states), -1, dtype=np.int64)
        place_of[ahead.rows] = np.arange(len(ahead.rows))
        places = place_of[rows]
        fits = (
            (places >= 0)
            & (slots.number[rows] == ahead.numbers[places])
            & (slots.kv_lengths(rows) + 1 == ahead.kv_lengths[places])
            & (slots.last_token[rows] == ahead.tokens[places])
        )
        covered = fits.nonzero()[0]
        return (covered, places[covered]) if covered.size else None

    def _run(self, rows: _Array) -> torch.Tensor:
        slots = self._memory.slots
        return self._graphs.run(self._decode_rows(rows, slots.num_computed[rows], slots.kv_lengths(rows) + 1), slots.last_token[rows])

    def _decode_rows(self, rows: _Array, positions: _Array, kv_lengths: _Array) -> DecodeRows:
        page_table = self._memory.tables.entries[rows, : page_columns(kv_lengths, self._page_size)]
        pages, offsets = np.divmod(kv_lengths - 1, self._page_size)
        slots = page_table[np.arange(len(rows)), pages] * self._page_size + offsets
        return DecodeRows(positions, slots, kv_lengths, page_table)

    def _with_rest(self, plan: Plan, covered: _Array, logits: torch.Tensor, compute: Callable[[Plan], ForwardOutput]) -> ForwardOutput:
        """All that a plan asks for, of which some decode rows are computed."""
        is_covered = np.zeros(len(plan.rows), dtype=bool)
        is_covered[covered] = True
        missing = (~is_covered).nonzero()[0]
        rest = replace(plan, rows=plan.rows[missing], decodes=[plan.decodes[index] for index in missing.tolist()])
        output = compute(rest) if rest.prefills else ForwardOutput(self._run(rest.rows), None)
        joined = torch.cat((logits, output.logits))
        if not missing.size:
            return ForwardOutput(joined, output.hidden)
        order = np.arange(len(joined))
        order[covered] = np.arange(len(covered))
        order[missing] = len(covered) + np.arange(len(missing))
        return ForwardOutput(joined.index_select(0, to_device([order], self._device)[0]), output.hidden)
