"""Turns a plan into the flat tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kernels.host.host_copy import to_device
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.scheduler.base import Chunk, Plan, SchedulerConfig
from compute_svc.scheduler.batch_slots import BatchSlots

_Array = npt.NDArray[np.int64]


class BatchBuilder:
    """Fills the same buffers at every step. On a CPU a batch is made of them, and valid until the next one is built; to a device it is copied.

    Args:
        config: Sizes.
        slots: Numbers and page tables of the running requests.
        device: Where the model is.
    """

    def __init__(self, config: SchedulerConfig, slots: BatchSlots, device: torch.device) -> None:
        self._page_size = config.page_size_tokens
        self._batch_slots = slots
        self._device = device
        self._token_ids = np.zeros(config.step_budget_tokens, dtype=np.int64)
        self._positions = np.zeros(config.step_budget_tokens, dtype=np.int64)
        self._slots = np.zeros(config.step_budget_tokens, dtype=np.int64)

    def build(self, plan: Plan) -> ForwardBatch:
        """The batch of a plan that is not empty: decode rows, then prefill chunks.

        Logits are wanted where a chunk ends with the last known token, and behind those where a prompt is read.
        """
        slots, rows, num_decodes = self._batch_slots, plan.rows, len(plan.rows)
        self._token_ids[:num_decodes] = slots.last_token[rows]
        self._positions[:num_decodes] = slots.num_computed[rows]
        kv_lengths = slots.kv_lengths(rows) + 1
        query_lengths = [1] * num_decodes
        logit_rows = np.arange(num_decodes)
        hidden_rows = np.empty(0, dtype=np.int64)
        end = num_decodes
        if plan.prefills:
            end, chunk_rows, chunk_lengths, wanted = self._add_chunks(plan, end)
            rows, kv_lengths = np.concatenate((rows, chunk_rows)), np.concatenate((kv_lengths, chunk_lengths))
            query_lengths += [chunk.length for chunk in plan.prefills]
            logit_rows = np.concatenate((logit_rows, wanted))
            if plan.reads:
                read, hidden_rows = _read_rows(plan.prefills, num_decodes)
                logit_rows = np.concatenate((logit_rows, read))
        lengths: list[int] = kv_lengths.tolist()
        page_table = slots.tables.entries[rows, : -(-max(lengths) // self._page_size)]
        self._fill_slots(page_table, query_lengths, kv_lengths, end)
        arrays = [
            self._token_ids[:end],
            self._positions[:end],
            self._slots[:end],
            page_table,
            logit_rows,
            begun_pages(page_table, query_lengths, kv_lengths, self._page_size),
            hidden_rows,
        ]
        on_host = self._device.type == "cpu"
        token_ids, positions, kv_slots, pages, rows_wanted, begun, hidden = (
            map(torch.from_numpy, arrays) if on_host else to_device(arrays, self._device)
        )
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slots=kv_slots,
            num_decodes=num_decodes,
            query_starts=(0, *accumulate(query_lengths)),
            kv_lengths=tuple(lengths),
            page_table=pages,
            logit_rows=rows_wanted,
            begun_pages=begun,
            position_limit=int(self._positions[:end].max()) + 1,
            hidden_rows=hidden if hidden_rows.size else None,
        )

    def _add_chunks(self, plan: Plan, end: int) -> tuple[int, _Array, _Array, _Array]:
        """Adds prefill chunks behind the decode rows: where they end, their rows in the tables, lengths of their KV, rows of logits wanted."""
        rows, lengths, wanted = [], [], []
        for chunk in plan.prefills:
            state, start, length = chunk
            self._token_ids[end : end + length] = state.tokens[start : start + length]
            self._positions[end : end + length] = np.arange(start, start + length)
            end += length
            rows.append(chunk.slot)
            lengths.append(start + length - state.dropped_tokens)
            if chunk.completes:
                wanted.append(end - 1)
        return end, np.array(rows), np.array(lengths), np.array(wanted, dtype=np.int64)

    def _fill_slots(self, page_table: _Array, query_lengths: list[int], kv_lengths: _Array, end: int) -> None:
        if end == len(query_lengths):
            owners, places = np.arange(end), kv_lengths - 1
        else:
            # Counted back from each request's end: where tokens were dropped, places are not positions.
            owners = np.repeat(np.arange(len(query_lengths)), query_lengths)
            places = np.arange(end) + (kv_lengths - np.cumsum(query_lengths))[owners]
        pages, offsets = np.divmod(places, self._page_size)
        self._slots[:end] = page_table[owners, pages] * self._page_size + offsets


def _read_rows(chunks: Sequence[Chunk], first: int) -> tuple[_Array, _Array]:
    """The flat rows whose logits tell of the next token of a prompt, and those whose hidden states are wanted.

    Args:
        chunks: Of a step.
        first: The flat row where they begin.
    """
    logits, hidden = [], []
    for chunk in chunks:
        offset = first - chunk.start
        logits.append(np.array(chunk.logprob_tokens, dtype=np.int64) + offset)
        hidden.append(np.array(chunk.hidden_tokens, dtype=np.int64) + offset)
        first += chunk.length
    return np.concatenate(logits), np.concatenate(hidden)
