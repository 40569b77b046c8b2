"""A model whose logits are a hash of the whole context, read from the KV pages: any mistake in them changes the answer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.forward_batch import ForwardBatch
from compute_svc.kv.page_store import KvPageStore

_UNWRITTEN = -1.0


def hash_kv(num_pages: int, page_size_tokens: int) -> KvPageStore:
    """KV for a `HashModel`: one number per token, -1 where nothing was written."""
    kv = KvPageStore(1, num_pages, page_size_tokens, 1, 1, torch.float32, torch.device("cpu"))
    kv.kv(0).fill_(_UNWRITTEN)
    return kv


class HashModel:
    """Implements the engine's `Model`: stores token ids as keys, positions as values.

    Args:
        width: Number of logits.
        levels: How many different logits there are; few make ties.
    """

    def __init__(self, width: int, *, levels: int = 1 << 16) -> None:
        self.width = width
        self.levels = levels
        self.batches: list[ForwardBatch] = []

    def logits_of(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        """[width] float32, for a context of token ids, without any KV."""
        seed = zlib.crc32(np.array(context, dtype=np.int64).tobytes())
        mixed = (np.arange(1, self.width + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        return ((mixed >> np.uint64(40)) % np.uint64(self.levels)).astype(np.float32) * np.float32(16.0 / self.levels) - 8

    def greedy_answer(self, prompt: Sequence[int], max_tokens: int, stop_token_ids: frozenset[int] = frozenset()) -> list[int]:
        """What a greedy request alone is answered."""
        context = list(prompt)
        for _ in range(max_tokens):
            context.append(int(self.logits_of(context).argmax()))
            if context[-1] in stop_token_ids:
                break
        return context[len(prompt) :]

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """Writes the batch's tokens to their slots, then hashes what each wanted row can see."""
        self.batches.append(batch)
        self._check(batch, kv)
        keys = kv.k(0)[0, :, :, 0].view(-1)
        values = kv.v(0)[0, :, :, 0].view(-1)
        keys[batch.slots] = batch.token_ids.float()
        values[batch.slots] = batch.positions.float()
        starts = torch.tensor(batch.query_starts)
        rows = []
        for flat in batch.logit_rows.tolist():
            request = int(torch.searchsorted(starts, flat, right=True)) - 1
            length = int(batch.positions[flat]) + 1
            pages = batch.page_table[request]
            slots = (pages[:, None] * kv.page_size_tokens + torch.arange(kv.page_size_tokens)).view(-1)[:length]
            assert values[slots].tolist() == list(range(length)), "KV that was never written, or another position's, is read"
            rows.append(torch.from_numpy(self.logits_of(keys[slots].long().tolist())))
        return torch.stack(rows) if rows else torch.empty((0, self.width))

    def _check(self, batch: ForwardBatch, kv: KvPageStore) -> None:
        starts = batch.query_starts
        assert starts[0] == 0 and starts[-1] == batch.token_ids.numel() == batch.positions.numel() == batch.slots.numel()
        assert len(starts) == batch.num_requests + 1 == batch.page_table.shape[0] + 1
        assert all(starts[index + 1] - starts[index] == 1 for index in range(batch.num_decodes)), "decode rows have one token"
        assert int(batch.token_ids.min()) >= 0 and int(batch.token_ids.max()) < self.width
        assert len(set(batch.slots.tolist())) == batch.slots.numel(), "two tokens are written to one slot"
        size = kv.page_size_tokens
        for request, length in enumerate(batch.kv_lengths):
            query = slice(starts[request], starts[request + 1])
            positions = batch.positions[query]
            assert positions.tolist() == list(range(length - positions.numel(), length)), "a chunk is the end of its request's tokens"
            pages = batch.page_table[request, positions // size]
            assert torch.equal(batch.slots[query], pages * size + positions % size)
