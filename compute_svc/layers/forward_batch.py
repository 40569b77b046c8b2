"""One merge step as flat tensors: decode rows and prefill chunks of many requests side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kernels.host.host_copy import to_device


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The tokens of one step, request after request, and where their keys and values belong.

    T tokens of R requests. Decode requests come first and bring one token each, so `num_decodes` alone splits the batch between
    decode and prefill attention. Request r owns the flat rows `query_starts[r] : query_starts[r + 1]`; they are the last tokens of
    its `kv_lengths[r]` tokens, in order. The n-th token of request r lies in page `page_table[r, n // page_size]` at offset
    `n % page_size`; pages of different requests may coincide only where their tokens do (a shared prefix). Its position is n, unless
    tokens that no layer sees any more were dropped before it (compute_svc/kv/window.py).

    The tensors may live on any device; a model moves them to its own. On its own device a step copies nothing
    more from the host but what attention plans are made of, without a wait.

    Attributes:
        token_ids: [T] int64.
        positions: [T] int64, the absolute position of each token in its request.
        slots: [T] int64, page * page_size + offset: where the token's key and value are written.
        num_decodes: How many of the first requests are decode rows.
        query_starts: R + 1 cumulative query lengths, from 0 to T.
        kv_lengths: R lengths of the KV including this step's tokens.
        page_table: [R, max_pages] int64, rows padded with 0.
        logit_rows: [L] int64, the flat rows whose logits are wanted.
        begun_pages: [n] int64, from `begun_pages`.
        position_limit: Above every position. That may be more than any length: where no layer sees everything, chunks that none sees may be missing
            from a request's KV.
        hidden_rows: [H] int64, the flat rows whose hidden states are wanted; None = nobody wants any.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    num_decodes: int
    query_starts: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    page_table: torch.Tensor
    logit_rows: torch.Tensor
    begun_pages: torch.Tensor
    position_limit: int
    hidden_rows: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.query_starts[-1]

    @property
    def num_requests(self) -> int:
        return len(self.kv_lengths)


NO_SLOT = -1
"""Slot of a row whose keys and values are written nowhere."""


class DecodeColumns(NamedTuple):
    """One token each of B requests, all of it on the device, where it may change from step to step while its shape stays.

    Attributes:
        token_ids: [B] int64.
        positions: [B] int64.
        slots: [B] int64, where keys and values are written; NO_SLOT in rows that are padding.
        kv_lengths: [B] int64, the tokens themselves included; 0 in rows that are padding.
        page_table: [B, max_pages] int64; what lies behind a request's pages is any page.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    kv_lengths: torch.Tensor
    page_table: torch.Tensor


class ForwardOutput(NamedTuple):
    """What a pass gives.

    Attributes:
        logits: [L, width] float32, of the batch's logit rows.
        hidden: [H, hidden size] float32, what the final norm gives of the batch's hidden rows; None if there are none.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None


def batch_on(batch: ForwardBatch, device: torch.device) -> ForwardBatch:
    """A batch of the host with its tensors on a device, copied in one go; itself if they are there."""
    if batch.token_ids.device.type == device.type:
        return batch
    tensors = {field.name: value for field in fields(batch) if isinstance(value := getattr(batch, field.name), torch.Tensor)}
    copies = to_device([tensor.numpy() for tensor in tensors.values()], device)
    return replace(batch, **dict(zip(tensors, copies, strict=True)))  # type: ignore[arg-type]  # by name, as they were


def begun_pages(
    page_table: npt.NDArray[np.int64],
    query_lengths: Sequence[int],
    kv_lengths: Sequence[int] | npt.NDArray[np.int64],
    page_size_tokens: int,
) -> npt.NDArray[np.int64]:
    """The pages that a batch begins and does not fill; a model clears what is left of them.

    Attention reads whole pages and gives what lies past a request's end the weight zero; that is only nothing if it is finite, and a
    page's last owner may have left anything. Found on the host, where all of this is known without a wait.

    Args:
        page_table: [R, max_pages].
        query_lengths: R lengths of what the batch brings.
        kv_lengths: R lengths of the KV including that.
        page_size_tokens: Tokens per page.

    Returns:
        [n], at most one page of each request.
    """
    ends = np.asarray(kv_lengths, dtype=np.int64)
    in_last_page = ends % page_size_tokens
    requests = ((in_last_page != 0) & (in_last_page <= np.asarray(query_lengths, dtype=np.int64))).nonzero()[0]
    found: npt.NDArray[np.int64] = page_table[requests, ends[requests] // page_size_tokens]
    return found
