"""A step in parts that follow each other through the stages of a pipeline, so that one stage computes the next part while another has the last. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from itertools import pairwise

import torch

from compute_svc.layers.forward_batch import ForwardBatch, begun_pages

# Below so many tokens a step takes the time to read the weights, whatever the tokens, and two parts would read them twice: about the products' work
# for each byte at which processors are as busy as memory.
_LEAST_TOKENS = {"cpu": 8}
_LEAST_TOKENS_ON_DEVICES = 256


def least_tokens(device_type: str) -> int:
    """Tokens that a part must have for a step to be cut."""
    return _LEAST_TOKENS.get(device_type, _LEAST_TOKENS_ON_DEVICES)


def micro_batches(batch: ForwardBatch, most: int, page_size_tokens: int, least: int) -> list[ForwardBatch]:
    """Cuts a batch of the host into parts of equally many tokens, give or take one.

    A part is a batch as a scheduler could have planned it, and together they compute what the whole does if they are computed one after the other: decode
    rows come first, and a prompt that is cut goes on in the next part from what the one before wrote. Nothing is asked of a part but hidden states.

    Args:
        batch: Its tensors are on the host.
        most: Parts.
        page_size_tokens: Tokens of a page.
        least: Tokens of a part; a batch of fewer than twice that is not cut.
    """
    count = max(1, min(most, batch.num_tokens // least))
    bounds = [number * batch.num_tokens // count for number in range(count + 1)]
    return [_part(batch, *span, page_size_tokens) for span in pairwise(bounds)]


def _part(batch: ForwardBatch, first: int, stop: int, page_size_tokens: int) -> ForwardBatch:
    """The flat rows from `first` to before `stop`."""
    starts = batch.query_starts
    requests = range(bisect_right(starts, first) - 1, bisect_left(starts, stop))
    kv_lengths = tuple(batch.kv_lengths[request] - max(0, starts[request + 1] - stop) for request in requests)
    query_starts = tuple(min(max(start, first), stop) - first for start in starts[requests.start : requests.stop + 1])
    page_table = batch.page_table[requests.start : requests.stop]
    query_lengths = [end - start for start, end in pairwise(query_starts)]
    return replace(
        batch,
        token_ids=batch.token_ids[first:stop],
        positions=batch.positions[first:stop],
        slots=batch.slots[first:stop],
        num_decodes=min(max(batch.num_decodes - requests.start, 0), len(requests)),
        query_starts=query_starts,
        kv_lengths=kv_lengths,
        page_table=page_table,
        logit_rows=torch.empty(0, dtype=torch.int64),
        # A part may begin a page that a later one fills.
        begun_pages=torch.from_numpy(begun_pages(page_table.numpy(), query_lengths, kv_lengths, page_size_tokens)),
        hidden_rows=None,
    )
