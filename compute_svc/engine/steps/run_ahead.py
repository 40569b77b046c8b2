"""Decode steps that are begun before the tokens of the one before are known on the host: the device never waits for Python.

When a step has drawn its tokens on the device, the next step of the same requests is given to the device at once, with those tokens as its
input, and only then the host waits for the tokens. What the next plan then asks for is mostly computed already. What turns out otherwise
(a request has ended, or goes on with another token than the one drawn) is left out: its keys and values are in no page that anybody reads,
for the page table and the count of computed tokens do not know of them, and whoever gets the page writes it later on the same stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.steps.decode_graphs import DecodeGraphs, DecodeRows, page_columns
from compute_svc.kernels.host_copy import to_device
from compute_svc.layers.forward_batch import ForwardOutput
from compute_svc.scheduler.base import Plan
from compute_svc.scheduler.kv_memory import KvMemory

_Array = npt.NDArray[np.int64]


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
    """

    rows: _Array
    numbers: _Array
    kv_lengths: _Array
    places: _Array
    tokens: _Array | None
    logits: torch.Tensor


class RunAhead:
    """Computes plans: decode rows by graphs, one step ahead, and all else as it comes.

    Args:
        graphs: Of decode steps.
        memory: Pages and batch slots of the requests.
        page_size_tokens: Tokens of a page.
        device: Where the model is.
    """

    def __init__(self, graphs: DecodeGraphs, memory: KvMemory, page_size_tokens: int, device: torch.device) -> None:
        self._graphs = graphs
        self._memory = memory
        self._page_size = page_size_tokens
        self._device = device
        self._ahead: _Ahead | None = None

    def forward(self, plan: Plan, compute: Callable[[Plan], ForwardOutput]) -> ForwardOutput:
        """What a plan that is not empty asks for.

        Args:
            plan: Of the scheduler.
            compute: Computes one in the ordinary way.
        """
        ahead, self._ahead = self._ahead, None
        taken = None if ahead is None else self._taken(ahead, plan.rows)
        if ahead is None or taken is None:
            return compute(plan) if plan.prefills else ForwardOutput(self._run(plan.rows), None)
        covered, places = taken
        if len(places) == len(ahead.rows) and (places == np.arange(len(places))).all():
            logits = ahead.logits
        else:
            logits = ahead.logits.index_select(0, to_device([places], self._device)[0])
        if len(covered) == len(plan.rows) and not plan.prefills:
            return ForwardOutput(logits, None)
        return self._with_rest(plan, covered, logits, compute)

    def begin(self, rows: _Array, tokens: torch.Tensor) -> None:
        """Begins the next step of requests whose last known token was just computed, as far as each goes on and finds a page.

        Args:
            rows: [n] their batch slots.
            tokens: [n] int64 on the device, drawn behind the last known ones.

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
        chosen, lengths = rows[places], lengths[places]
        logits = self._graphs.run(
            self._decode_rows(chosen, slots.num_tokens[chosen], lengths), tokens, None if len(places) == len(rows) else places
        )
        self._ahead = _Ahead(chosen, slots.number[chosen], lengths, places, None, logits)

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
