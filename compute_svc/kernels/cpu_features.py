"""What the CPU can do, as torch and oneDNN see it; the one place that asks."""

from __future__ import annotations

import platform
from functools import cache

import torch

_X86 = ("x86_64", "AMD64")


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers faster than float32 ones.

    oneDNN alone would do it on any AVX-512, without the instructions at a third of float32's speed. It says what it may use, so
    `ONEDNN_MAX_CPU_ISA` counts here; torch says what the CPU has.
    """
    if not torch._C._has_mkldnn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in _X86:
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
