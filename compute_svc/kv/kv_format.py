"""What keys and values are stored as. Pure."""

from __future__ import annotations

from typing import NamedTuple

import torch

_SCALE_BYTES = torch.float16.itemsize


class KvFormat(NamedTuple):
    """A format of the KV store.

    Attributes:
        dtype: Of numbers, or of codes.
        group: How many codes in a row along a head share a scale (kernels/paged_kv/kv_codes.py); None = numbers are stored as they are.
    """

    dtype: torch.dtype
    group: int | None = None

    @property
    def name(self) -> str:
        """As COMPUTE_KV_FORMAT has it."""
        if self.group is None:
            return str(self.dtype).removeprefix("torch.")
        return f"{'int8' if self.dtype == torch.int8 else 'fp8'}-g{self.group}"

    def bytes_per_token(self, num_layers: int, num_kv_heads: int, head_dim: int) -> int:
        """What a token's keys and values take in all layers."""
        num_scales = 0 if self.group is None else -(-head_dim // self.group)
        return 2 * num_layers * num_kv_heads * (head_dim * self.dtype.itemsize + num_scales * _SCALE_BYTES)


KV_FORMATS = {
    one.name: one
    for one in (
        KvFormat(torch.float32),
        KvFormat(torch.bfloat16),
        KvFormat(torch.int8, 8),
        KvFormat(torch.int8, 32),
        KvFormat(torch.int8, 64),
        KvFormat(torch.float8_e4m3fn, 64),
    )
}
"""All formats, by name."""


def choose_kv_format(wanted: str, told: str | None, dtype: torch.dtype) -> KvFormat:
    """What to store.

    Args:
        wanted: The setting: a name in KV_FORMATS, or "auto".
        told: The name that the checkpoint asks for, which auto takes; None = none.
        dtype: What the model is computed in, float32 or bfloat16, which auto takes otherwise.
    """
    if wanted != "auto":
        return KV_FORMATS[wanted]
    return KvFormat(dtype) if told is None else KV_FORMATS[told]
