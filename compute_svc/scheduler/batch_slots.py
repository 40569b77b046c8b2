"""What steps need of all running requests at once, in arrays by batch slot."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compute_svc.kv.page_table import PageTable, PageTables
from compute_svc.scheduler.base import RECENT_TOKENS, Number, RequestState

Rows = npt.NDArray[np.int64]
_NO_TOKEN = -1
# Stop ids of a request that are compared in arrays; models have up to a handful.
_MAX_STOPS = 8


class BatchSlots:
    """A place in the batch for each running request: its row in every array.

    Planning, building a batch and taking in what was drawn so cost a few operations on arrays whatever the number of decode rows, and
    Python for the few that begin, grow by a page or end.

    Args:
        num_slots: Most requests that run at once.
        num_pages: Most pages of one.

    Attributes:
        states: The request of each slot; None = it is free.
        tables: Their page tables.
        num_tokens, num_computed, dropped_tokens, prefill_end, last_token, number, prompt_tokens: [slots] int64 each, see `RequestState`.
    """

    def __init__(self, num_slots: int, num_pages: int) -> None:
        self.states: list[RequestState | None] = [None] * num_slots
        self.tables = PageTables(num_slots, num_pages)
        self._recent = np.zeros((num_slots, RECENT_TOKENS), dtype=np.int64)
        self._numbers = np.zeros((len(Number.names), num_slots), dtype=np.int64)
        self._stops = np.full((num_slots, _MAX_STOPS), _NO_TOKEN, dtype=np.int64)
        # Of slots that have more of them.
        self._many_stops: dict[int, frozenset[int]] = {}
        self.num_tokens, self.num_computed, self.dropped_tokens, self.prefill_end, self.last_token = self._numbers[:5]
        self._awaiting, self._paused, self._end, self._stops_from, self.number, self.prompt_tokens = self._numbers[5:]

    def enter(self, state: RequestState) -> PageTable:
        """Gives a request a slot, and a page table without pages."""
        table = self.tables.open()
        slot = table.row
        self.states[slot] = state
        self._numbers[:, slot] = state.numbers
        state.numbers, state.recent = self._numbers[:, slot], self._recent[slot]
        stops = sorted(state.request.stop_token_ids)
        self._stops[slot] = _NO_TOKEN
        if len(stops) <= _MAX_STOPS:
            self._stops[slot, : len(stops)] = stops
        else:
            self._many_stops[slot] = state.request.stop_token_ids
        return table

    def leave(self, state: RequestState, table: PageTable) -> None:
        """Takes the slot back; the pages stay the caller's, and the request keeps its numbers and tokens."""
        state.collect()
        state.numbers, state.recent = state.numbers.copy(), state.recent.copy()
        self.states[table.row] = None
        self._many_stops.pop(table.row, None)
        self.tables.close(table)

    def split(self, rows: Rows) -> tuple[Rows, Rows]:
        """Of some slots those that decode, and those whose prompt is not computed; those that are blocked are in neither."""
        goes_on = (self._awaiting[rows] | self._paused[rows]) == 0
        decodes = self.num_computed[rows] >= self.prefill_end[rows]
        return rows[goes_on & decodes], rows[goes_on & ~decodes]

    def paused_of(self, rows: Rows) -> Rows:
        """Of some slots those whose request is paused."""
        paused: Rows = rows[self._paused[rows] != 0]
        return paused

    def kv_lengths(self, rows: Rows) -> Rows:
        """[n], tokens whose KV is in pages."""
        lengths: Rows = self.num_computed[rows] - self.dropped_tokens[rows]
        return lengths

    def go_on(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """[n], whether some requests go on behind the next token that is drawn, unless that is a stop id."""
        goes_on: npt.NDArray[np.bool_] = self.num_tokens[rows] + 1 < self._end[rows]
        return goes_on

    def accept(self, rows: Rows, tokens: npt.NDArray[np.int64]) -> Rows:
        """Adds a drawn token to each of some requests.

        Args:
            rows: [n] slots, none twice.
            tokens: [n].

        Returns:
            Indices into `rows` of those that end with it: by max_tokens, or by a stop id where min_tokens are there.
        """
        known = self.num_tokens[rows]
        self._recent[rows, known % RECENT_TOKENS] = tokens
        self.last_token[rows] = tokens
        known += 1
        self.num_tokens[rows] = known
        for slot in rows[known % RECENT_TOKENS == 0].tolist():
            state = self.states[slot]
            assert state is not None, "who gets a token runs"
            state.collect()
        is_stop = (self._stops[rows] == tokens[:, None]).any(axis=1)
        if self._many_stops:
            # One by one: thousands of one request are not compared with everybody's token.
            for index, slot in enumerate(rows.tolist()):
                is_stop[index] |= int(tokens[index]) in self._many_stops.get(slot, ())
        is_stop &= known >= self._stops_from[rows]
        ends: Rows = (is_stop | (known >= self._end[rows])).nonzero()[0]
        return ends
