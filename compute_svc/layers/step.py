"""What every layer of one forward pass shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compute_svc.kernels.decode_attention import DecodePlan
from compute_svc.kernels.prefill_attention import PrefillPlan


@dataclass(frozen=True, slots=True, eq=False)
class StepKind:
    """What layers of one kind share.

    Attributes:
        cos: [P, 1, rotary dims] float32; empty without rotary embeddings.
        sin: [P, 1, rotary dims] float32, its first half negated.
        decode: How decode rows find their KV; None if there are none.
        prefill: How the other rows find theirs; None if there are none.
        sink_turn: cos and sin, as above, for queries against the keys of sink tokens; None if there are none.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    decode: DecodePlan | None
    prefill: PrefillPlan | None
    sink_turn: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A batch of T tokens, prepared: what depends on the batch and not on the layer.

    Activations have P >= T rows; those past T are padding and belong to no request.

    Attributes:
        num_tokens: T.
        num_decodes: How many of the first tokens are decode rows.
        slots: [T] int64, where keys and values are written.
        attended: [P, num_heads * D], what attention gives; written anew by every layer, padding rows zero.
        kinds: For each kind of layer.
    """

    num_tokens: int
    num_decodes: int
    slots: torch.Tensor
    attended: torch.Tensor
    kinds: tuple[StepKind, ...]
