"""Drives a model by hand: builds batches over pages that every request got at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from compute_svc.kv.kv_format import choose_kv_format
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.models.causal_lm import CausalLM
from tests.fakes.poisoned_kv import poison


@dataclass
class DrivenRequest:
    """A request and how much of it is in the KV."""

    tokens: list[int]
    pages: torch.Tensor
    num_computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)


class ForwardDriver:
    """Owns a poisoned KV store and hands its pages out in random order.

    Args:
        model: What to drive.
        num_pages: Of the store; never returned.
        page_size_tokens: Of the store.
        seed: Of the order of pages.
        kv_format: Of the store.
    """

    def __init__(self, model: CausalLM, *, num_pages: int = 64, page_size_tokens: int = 16, seed: int = 0, kv_format: str = "auto") -> None:
        config, format_ = model.config, choose_kv_format(kv_format, None, model.dtype)
        self.model = model
        sizes = (config.num_layers, num_pages, page_size_tokens, config.num_kv_heads, config.kv_head_dim)
        self.kv = KvPageStore(*sizes, format_.dtype, model.device, group=format_.group)
        poison(self.kv)
        self._free = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed))

    def request(
        self, tokens: Sequence[int], max_tokens: int, *, share: DrivenRequest | None = None, shared_pages: int = 0
    ) -> DrivenRequest:
        """A new request with pages for max_tokens, the first of them another's where asked."""
        needed = -(-max_tokens // self.kv.page_size_tokens) - shared_pages
        assert needed <= len(self._free), "the driver's store is too small for this test"
        own, self._free = self._free[:needed], self._free[needed:]
        pages = own if share is None else torch.cat((share.pages[:shared_pages], own))
        return DrivenRequest(list(tokens), pages, num_computed=shared_pages * self.kv.page_size_tokens)

    def step(
        self, decodes: Sequence[DrivenRequest], prefills: Sequence[tuple[DrivenRequest, int]], *, all_logits: bool = False
    ) -> torch.Tensor:
        """One forward pass: the newest token of each decode row, then the next tokens of each prefilling request.

        Returns:
            Logits of the last token of every request, or of all tokens.

        Effects: counts the tokens as computed, and appends each request's logits to it.
        """
        parts = [(request, 1) for request in decodes] + list(prefills)
        size = self.kv.page_size_tokens
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for request, count in parts:
            span = range(request.num_computed, request.num_computed + count)
            assert span.stop <= len(request.tokens), "only known tokens can be computed"
            token_ids += [request.tokens[position] for position in span]
            positions += span
            slots += [int(request.pages[position // size]) * size + position % size for position in span]
            starts.append(starts[-1] + count)
            request.num_computed += count
        page_table = torch.nn.utils.rnn.pad_sequence([request.pages for request, _ in parts], batch_first=True)
        rows = range(starts[-1]) if all_logits else [end - 1 for end in starts[1:]]
        kv_lengths = tuple(request.num_computed for request, _ in parts)
        query_lengths = [count for _, count in parts]
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            num_decodes=len(decodes),
            query_starts=tuple(starts),
            kv_lengths=kv_lengths,
            page_table=page_table,
            logit_rows=torch.tensor(list(rows)),
            begun_pages=torch.from_numpy(begun_pages(page_table.numpy(), query_lengths, kv_lengths, size)),
            position_limit=max(positions) + 1,
        )
        logits = self.model.forward(batch, self.kv)
        for index, (request, _) in enumerate(parts):
            request.logits.append(logits[starts[index] : starts[index + 1]] if all_logits else logits[index : index + 1])
        return logits

    def stored(self, request: DrivenRequest) -> torch.Tensor:
        """[layers, 2 * kv_heads, num_computed, n] float32: all that is stored of the request's keys and values, in order; scales behind codes."""
        layers = [self.kv.kv(layer) for layer in range(self.kv.num_layers)]
        parts = [part for layer in layers for part in (layer.data, layer.scales) if part is not None]
        stored = [part[:, request.pages].float().flatten(1, 2)[:, : request.num_computed] for part in parts]
        count = len(parts) // len(layers)
        return torch.stack([torch.cat(stored[start : start + count], dim=-1) for start in range(0, len(stored), count)])


def greedy(
    driver: ForwardDriver, prompts: Sequence[Sequence[int]], num_tokens: int, *, chunk_tokens: int, budget_tokens: int
) -> list[list[int]]:
    """Continuations of prompts, computed together in merge steps: decode rows first, then prefill chunks under a token budget."""
    requests = [driver.request(prompt, len(prompt) + num_tokens) for prompt in prompts]
    lengths = [len(prompt) + num_tokens for prompt in prompts]
    while any(request.num_computed < length - 1 for request, length in zip(requests, lengths, strict=True)):
        decodes, prefills = [], []
        left = budget_tokens
        for request, prompt, length in zip(requests, prompts, lengths, strict=True):
            if request.num_computed >= len(prompt) and request.num_computed < length - 1:
                decodes.append(request)
                left -= 1
        for request, prompt in zip(requests, prompts, strict=True):
            count = min(chunk_tokens, len(prompt) - request.num_computed, left)
            if request.num_computed < len(prompt) and count > 0:
                prefills.append((request, count))
                left -= count
        logits = driver.step(decodes, prefills)
        for request, row in zip([*decodes, *(request for request, _ in prefills)], logits, strict=True):
            if request.num_computed == len(request.tokens):
                request.tokens.append(int(row.argmax()))
    return [request.tokens[len(prompt) :] for request, prompt in zip(requests, prompts, strict=True)]
