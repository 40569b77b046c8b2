"""A model whose logits are a hash of the whole context, read from the KV pages: any mistake in them changes the answer."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.kv.window import KvWindow
from compute_svc.layers.forward_batch import ForwardBatch, ForwardOutput

_UNWRITTEN = -1.0
_SINKS = 2


def hash_kv(num_pages: int, page_size_tokens: int) -> KvPageStore:
    """KV for a `HashModel`: one number per token, -1 where nothing was written."""
    kv = KvPageStore(1, num_pages, page_size_tokens, 1, 1, torch.float32, torch.device("cpu"))
    kv.kv(0).data.fill_(_UNWRITTEN)
    return kv


class HashModel:
    """Implements the engine's `Model` and `HiddenStatesModel`: stores token ids as keys, positions as values. A token's vector is its first logits.

    Args:
        width: Number of logits.
        levels: How many different logits there are; few make ties.
        window: A token sees so much, and the first two tokens; None = all before it.
    """

    hidden_size = 3

    def __init__(self, width: int, *, levels: int = 1 << 16, window: KvWindow | None = None) -> None:
        self.width = width
        self.levels = levels
        self.window = window
        self.batches: list[ForwardBatch] = []

    def logits_of(self, context: Sequence[int]) -> npt.NDArray[np.float32]:
        """[width] float32, for a context of token ids, without any KV."""
        seen = [(position, token) for position, token in enumerate(context) if self._sees(len(context) - 1, position)]
        return self.logits_of_seen(seen)

    def logits_of_seen(self, seen: Sequence[tuple[int, int]]) -> npt.NDArray[np.float32]:
        """The same, for positions and ids that the last of them sees."""
        seed = zlib.crc32(np.array(seen, dtype=np.int64).tobytes())
        mixed = (np.arange(1, self.width + 1, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
        return ((mixed >> np.uint64(40)) % np.uint64(self.levels)).astype(np.float32) * np.float32(16.0 / self.levels) - 8

    def _sees(self, query: int, position: int) -> bool:
        return self.window is None or position < _SINKS or query - self.window.tokens < position

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
        kv.k(0)[0, :, :, 0].view(-1)[batch.slots] = batch.token_ids.float()
        kv.v(0)[0, :, :, 0].view(-1)[batch.slots] = batch.positions.float()
        return self._rows(batch, kv, batch.logit_rows)

    def forward_with_hidden(self, batch: ForwardBatch, kv: KvPageStore) -> ForwardOutput:
        """As `forward`, with vectors."""
        logits = self.forward(batch, kv)
        assert batch.hidden_rows is not None and batch.hidden_rows.numel(), "they are asked for where some are wanted"
        return ForwardOutput(logits, self._rows(batch, kv, batch.hidden_rows)[:, : self.hidden_size])

    def _rows(self, batch: ForwardBatch, kv: KvPageStore, flat_rows: torch.Tensor) -> torch.Tensor:
        keys, values = kv.k(0)[0, :, :, 0].view(-1), kv.v(0)[0, :, :, 0].view(-1)
        starts = torch.tensor(batch.query_starts)
        rows = []
        for flat in flat_rows.tolist():
            request = int(torch.searchsorted(starts, flat, right=True)) - 1
            query = int(batch.positions[flat])
            length = batch.kv_lengths[request] - (batch.query_starts[request + 1] - 1 - flat)
            positions = self._positions(length, query + 1 - length)
            pages = batch.page_table[request]
            slots = (pages[:, None] * kv.page_size_tokens + torch.arange(kv.page_size_tokens)).view(-1)[:length]
            seen = torch.tensor([self._sees(query, position) for position in positions])
            assert int(seen.sum()) == sum(self._sees(query, position) for position in range(query + 1)), "all that is seen is there"
            expected = [position for position, is_seen in zip(positions, seen.tolist(), strict=True) if is_seen]
            assert values[slots][seen].tolist() == expected, "KV that was never written, or another position's, is read"
            rows.append(torch.from_numpy(self.logits_of_seen(list(zip(expected, keys[slots][seen].long().tolist(), strict=True)))))
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
            places = torch.arange(length - positions.numel(), length)
            dropped = int(positions[0] - places[0])
            assert self.window is not None or dropped == 0
            assert positions.tolist() == (places + dropped).tolist(), "a chunk is the end of its request's tokens"
            pages = batch.page_table[request, places // size]
            assert torch.equal(batch.slots[query], pages * size + places % size)

    def _positions(self, length: int, dropped: int) -> list[int]:
        """The positions of a request's tokens, where so many behind the first chunk were dropped."""
        first = length if self.window is None else self.window.chunk_tokens
        return [place if place < first else place + dropped for place in range(length)]
