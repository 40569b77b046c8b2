"""Turns a plan into the flat tensors of one forward pass."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import torch

from compute_svc.kernels.host_copy import to_device
from compute_svc.kv.page_table import PageTables
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.scheduler.base import Plan, RequestState, SchedulerConfig


class BatchBuilder:
    """Fills the same buffers at every step. On a CPU a batch is made of them, and valid until the next one is built; to a device it is copied.

    Args:
        config: Sizes.
        tables: Page tables of the running requests.
        device: Where the model is.
    """

    def __init__(self, config: SchedulerConfig, tables: PageTables, device: torch.device) -> None:
        self._page_size = config.page_size_tokens
        self._tables = tables
        self._device = device
        self._token_ids = np.zeros(config.step_budget_tokens, dtype=np.int64)
        self._positions = np.zeros(config.step_budget_tokens, dtype=np.int64)
        self._slots = np.zeros(config.step_budget_tokens, dtype=np.int64)

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan that is not empty: decode rows, then prefill chunks, logits where a chunk ends with the last known token."""
        num_decodes = len(plan.decodes)
        self._token_ids[:num_decodes] = [state.last_token for state in plan.decodes]
        self._positions[:num_decodes] = [state.num_computed for state in plan.decodes]
        kv_lengths = [state.kv_length + 1 for state in plan.decodes]
        query_lengths = [1] * num_decodes
        logit_rows = list(range(num_decodes))
        end = num_decodes
        for state, start, length in plan.prefills:
            self._token_ids[end : end + length] = state.tokens[start : start + length]
            self._positions[end : end + length] = np.arange(start, start + length)
            end += length
            kv_lengths.append(start + length - state.dropped_tokens)
            query_lengths.append(length)
            if start + length == state.num_tokens:
                logit_rows.append(end - 1)
        rows = [_row(state) for state in plan.decodes] + [_row(chunk.state) for chunk in plan.prefills]
        max_pages = -(-max(kv_lengths) // self._page_size)
        page_table = self._tables.entries[rows, :max_pages]
        self._fill_slots(page_table, query_lengths, kv_lengths, end)
        arrays = [
            self._token_ids[:end],
            self._positions[:end],
            self._slots[:end],
            page_table,
            np.array(logit_rows, dtype=np.int64),
            begun_pages(page_table, query_lengths, kv_lengths, self._page_size),
        ]
        on_host = self._device.type == "cpu"
        token_ids, positions, slots, pages, rows_wanted, begun = (
            map(torch.from_numpy, arrays) if on_host else to_device(arrays, self._device)
        )
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slots=slots,
            num_decodes=num_decodes,
            query_starts=(0, *accumulate(query_lengths)),
            kv_lengths=tuple(kv_lengths),
            page_table=pages,
            logit_rows=rows_wanted,
            begun_pages=begun,
            position_limit=int(self._positions[:end].max()) + 1,
        )

    def _fill_slots(
        self, page_table: np.ndarray[tuple[int, ...], np.dtype[np.int64]], query_lengths: list[int], kv_lengths: list[int], end: int
    ) -> None:
        ends = np.array(kv_lengths)
        if end == len(query_lengths):
            owners, places = np.arange(end), ends - 1
        else:
            # Counted back from each request's end: where tokens were dropped, places are not positions.
            owners = np.repeat(np.arange(len(query_lengths)), query_lengths)
            places = np.arange(end) + (ends - np.cumsum(query_lengths))[owners]
        pages, offsets = np.divmod(places, self._page_size)
        self._slots[:end] = page_table[owners, pages] * self._page_size + offsets


def _row(state: RequestState) -> int:
    assert state.table is not None, "a planned request has a page table"
    return state.table.row
