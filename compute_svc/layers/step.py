"""What every layer of one forward pass shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.decode_attention import DecodePlan
from compute_svc.kernels.prefill_attention import PrefillPlan


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch of T tokens, prepared: what depends on the batch and not on the layer.

    Activations have P >= T rows; those past T are padding and belong to no request.

    Attributes:
        num_tokens: T.
        num_decodes: How many of the first tokens are decode rows.
        slots: [T] int64, where keys and values are written.
        attended: [P, num_heads * D], what attention gives; written anew by every layer, padding rows zero.
        cos: [P, 1, D] float32.
        sin: [P, 1, D] float32, its first half negated.
        decode: How decode rows find their KV; None if there are none.
        prefill: How the other rows find theirs; None if there are none.
    """

    num_tokens: int
    num_decodes: int
    slots: torch.Tensor
    attended: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    decode: DecodePlan | None
    prefill: PrefillPlan | None
