"""What keys and values are stored as. Pure."""

from __future__ import annotations

from typing import NamedTuple

import torch

_SCALE_BYTES = torch.float16.itemsize


class KvFormat(NamedTuple):
    """A format of the KV store.

    Attributes:
        name: As COMPUTE_KV_FORMAT has it.
        dtype: Of numbers, or of codes.
        group: How many codes in a row along a head share a scale; None = numbers are stored as they are.
    """

    name: str
    dtype: torch.dtype
    group: int | None = None

    def bytes_per_token(self, num_layers: int, num_kv_heads: int, head_dim: int) -> int:
        """What a token's keys and values take in all layers."""
        num_scales = 0 if self.group is None else -(-head_dim // self.group)
        return 2 * num_layers * num_kv_heads * (head_dim * self.dtype.itemsize + num_scales * _SCALE_BYTES)


KV_FORMATS = {
    one.name: one
    for one in (
        KvFormat("float32", torch.float32),
        KvFormat("bfloat16", torch.bfloat16),
        KvFormat("int8-g8", torch.int8, 8),
        KvFormat("int8-g32", torch.int8, 32),
        KvFormat("int8-g64", torch.int8, 64),
        KvFormat("fp8-g64", torch.float8_e4m3fn, 64),
    )
}
"""All formats, by name."""


def kv_format_of(wanted: str, dtype: torch.dtype) -> KvFormat:
    """The format that a setting asks for.

    Args:
        wanted: "auto" or a name in KV_FORMATS.
        dtype: What the model is computed in, float32 or bfloat16; auto takes that.
    """
    return KV_FORMATS[str(dtype).removeprefix("torch.") if wanted == "auto" else wanted]
