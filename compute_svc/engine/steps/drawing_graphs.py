"""Graphs of decode steps that draw, too, and leave behind what the next step reads: a run of the same requests is a replay a step.

In a graph: where keys and values go, by the page table and the lengths; the pass; the draw of each row, as `DrawNumbers` says; positions, lengths
and the answer's position, one higher for the next step. Tokens lie where the next step reads them.

Not in a graph: new pages, because the scheduler gives them, so that what has changed of the page table is sent; the copy of the tokens to the host,
which goes to other pinned memory each time; and rows that want more than such a draw, for which the graph's logits are copied. A graph draws in
either case: a second one for each number of rows, without the draw, would keep logits of its own, and the draw is one look at the logits.
Ranks have plain `DecodeGraphs`: only the first one has logits, and each would have to know what it drew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.drawing import DirectDraws, DrawInto
from compute_svc.engine.steps.decode_graphs import DecodeGraphs, DecodeRows, Ids, Recorder
from compute_svc.kernels.draw import DrawNumbers
from compute_svc.kernels.host.host_copy import to_device
from compute_svc.layers.forward_batch import NO_SLOT, DecodeColumns

# Rows of the columns. What a step finds: the host is told the first two, and the next step computes the first.
_TOKEN, _FLAG = 0, 1
# What goes up by one with every step, where there is a request.
_POSITION, _KV_LENGTH, _PLACE, _ANSWER_POSITION = 2, 3, 4, 5
# What stays: 1 where there is a request, and how it draws.
_LIVES, _SEED, _TEMPERATURE, _MIN_P, _TOP_K, _TOP_P = 6, 7, 8, 9, 10, 11
_NUM_COLUMNS = 12
_FOUND = slice(0, 2)
_SENT = slice(2, _NUM_COLUMNS)
_RISING = slice(2, 6)
# No column and no page table holds it.
_UNKNOWN = -(1 << 62)


class RowDraws(NamedTuple):
    """How the rows of a step draw, on the host: n rows.

    Attributes:
        direct: Of their requests.
        positions: [n] int64, of the tokens to be drawn, in their answers.
    """

    direct: DirectDraws
    positions: Ids


class GraphStep(NamedTuple):
    """What a graph computed, in memory that the next graph writes.

    Attributes:
        logits: [n, width] float32.
        found: [2, n] int64, tokens and flags, see `draw_into`.
    """

    logits: torch.Tensor
    found: torch.Tensor


class DrawingGraphs(DecodeGraphs):
    """As `DecodeGraphs`, whose arguments it has, with the draw.

    What the device holds is known here, so that a step is sent what it needs and the device does not have.

    Args:
        page_size_tokens: Tokens of a page.
        draw_into: Draws.
    """

    def __init__(
        self,
        decode: Callable[[DecodeColumns], torch.Tensor],
        *,
        max_requests: int,
        max_pages: int,
        device: torch.device,
        recorder: Recorder,
        page_size_tokens: int,
        draw_into: DrawInto,
    ) -> None:
        self.draw_into = draw_into
        self._page_size = page_size_tokens
        super().__init__(decode, max_requests=max_requests, max_pages=max_pages, device=device, recorder=recorder)
        # What the device's columns and page table hold, those of `_FOUND` left out.
        self._held = np.zeros(self._columns[_SENT].shape, dtype=np.int64)
        self._held_pages = np.zeros(self._page_table.shape, dtype=np.int64)

    def run(self, rows: DecodeRows, token_ids: Ids | torch.Tensor | None, chosen: Ids | None = None) -> torch.Tensor:
        """See `DecodeGraphs`."""
        return self.step(rows, token_ids, chosen, None).logits.clone()

    def step(self, rows: DecodeRows, token_ids: Ids | torch.Tensor | None, chosen: Ids | None, draws: RowDraws | None) -> GraphStep:
        """Computes and draws rows, without waiting for the device.

        Args:
            rows: See `run`, as the following.
            token_ids: May be what the step before found, which then is where it has to be.
            chosen: [n] int64.
            draws: How the rows draw; None = what is found is of no use.
        """
        size = self._size_for(len(rows.positions))
        graph = self._graphs[size]
        try:
            with torch.inference_mode():
                self._send(rows, token_ids, chosen, self._wanted(rows, draws, size))
                graph.replay()
        except Exception:
            # Who knows how far it came.
            self._held.fill(_UNKNOWN)
            self._held_pages.fill(_UNKNOWN)
            raise
        self._held[_from_sent(_RISING), :size] += self._held[_LIVES - _SENT.start, :size]
        count = len(rows.positions)
        return GraphStep(graph.output[:count], self._columns[_FOUND, :count])

    def _make_columns(self) -> torch.Tensor:
        return torch.zeros((_NUM_COLUMNS, self._sizes[-1]), dtype=torch.int64, device=self._device)

    def _computation(self, decode: Callable[[DecodeColumns], torch.Tensor], size: int) -> Callable[[], torch.Tensor]:
        return partial(self._compute, decode, size)

    def _compute(self, decode: Callable[[DecodeColumns], torch.Tensor], size: int) -> torch.Tensor:
        """Logits [size, width] of what the columns hold; writes what is found, and moves on to the next step."""
        columns, page_table = self._columns[:, :size], self._page_table[:size]
        pages = page_table.gather(1, (columns[_PLACE] // self._page_size)[:, None])[:, 0]
        slots = (columns[_PLACE] % self._page_size).add_(pages, alpha=self._page_size).masked_fill_(columns[_LIVES] == 0, NO_SLOT)
        logits = decode(DecodeColumns(columns[_TOKEN], columns[_POSITION], slots, columns[_KV_LENGTH], page_table))
        temperatures, min_ps, top_ps = (columns[one].view(torch.float64) for one in (_TEMPERATURE, _MIN_P, _TOP_P))
        numbers = DrawNumbers(columns[_SEED], columns[_ANSWER_POSITION], temperatures, min_ps, columns[_TOP_K], top_ps)
        self.draw_into(logits, numbers, columns[_TOKEN], columns[_FLAG])
        columns[_RISING].add_(columns[_LIVES])
        return logits

    def _wanted(self, rows: DecodeRows, draws: RowDraws | None, size: int) -> Ids:
        """[10, size]: the columns of a step, those of `_FOUND` left out; zeros where there is no request."""
        count = len(rows.positions)
        columns = np.zeros((_NUM_COLUMNS, size), dtype=np.int64)
        columns[_POSITION, :count] = rows.positions
        columns[_KV_LENGTH, :count] = rows.kv_lengths
        columns[_PLACE, :count] = rows.kv_lengths - 1
        columns[_LIVES, :count] = 1
        if draws is not None:
            direct = draws.direct
            columns[_ANSWER_POSITION, :count] = draws.positions
            columns[_SEED, :count] = direct.seeds
            columns[_TEMPERATURE, :count] = direct.temperatures.view(np.int64)
            if direct.min_ps is not None:
                columns[_MIN_P, :count] = direct.min_ps.view(np.int64)
            columns[_TOP_P].view(np.float64)[:count] = 1.0 if direct.top_ps is None else direct.top_ps
            if direct.top_ks is not None:
                columns[_TOP_K, :count] = direct.top_ks
        return columns[_SENT]

    def _send(self, rows: DecodeRows, token_ids: Ids | torch.Tensor | None, chosen: Ids | None, wanted: Ids) -> None:
        """Brings to the device what it does not hold, in one transfer."""
        count, size = len(rows.positions), wanted.shape[1]
        arrays: list[Ids] = []
        is_told = (self._held[:, :size] == wanted).all()
        if not is_told:
            arrays.append(wanted)
        of_pages = self._held_pages[:count, : rows.page_table.shape[1]]
        of_rows, places = (of_pages != rows.page_table).nonzero()
        if of_rows.size:
            arrays += [of_rows * self._held_pages.shape[1] + places, rows.page_table[of_rows, places]]
        if isinstance(token_ids, np.ndarray):
            arrays.append(token_ids)
        elif chosen is not None:
            arrays.append(chosen)
        sent = iter(to_device(arrays, self._device) if arrays else ())
        if not is_told:
            self._columns[_SENT, :size].copy_(next(sent))
            self._held[:, :size] = wanted
        if of_rows.size:
            self._page_table.view(-1).index_copy_(0, next(sent), next(sent))
            of_pages[of_rows, places] = rows.page_table[of_rows, places]
        if isinstance(token_ids, np.ndarray):
            self._columns[_TOKEN, :count].copy_(next(sent))
        elif token_ids is not None and chosen is not None:
            self._columns[_TOKEN, :count].copy_(token_ids.index_select(0, next(sent)))
        elif token_ids is not None and token_ids.data_ptr() != self._columns.data_ptr():
            self._columns[_TOKEN, :count].copy_(token_ids[:count])


def _from_sent(columns: slice) -> slice:
    """Where columns are in arrays that begin with those that are sent."""
    return slice(columns.start - _SENT.start, columns.stop - _SENT.start)
