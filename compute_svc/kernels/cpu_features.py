"""What the CPU can do, as torch and oneDNN see it; the one place that asks."""

from __future__ import annotations

import platform
from functools import cache
from typing import Literal

import torch

X86_MACHINES = ("x86_64", "AMD64")

# What a library of our own is built for: AVX-512 with its dot products of bytes, AVX2 with FMA, or whatever the architecture has at least.
InstructionSet = Literal["avx512_vnni", "avx2", "portable"]


@cache
def multiplies_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 numbers faster than float32 ones.

    oneDNN alone would do it on any AVX-512, without the instructions at a third of float32's speed. It says what it may use, so
    `ONEDNN_MAX_CPU_ISA` counts here; torch says what the CPU has.
    """
    if not torch._C._has_mkldnn or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in X86_MACHINES:
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def multiplies_tiles() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (AMX), many times faster than vectors."""
    return multiplies_bfloat16() and platform.machine() in X86_MACHINES and bool(torch.cpu._is_amx_tile_supported())


@cache
def instruction_set() -> InstructionSet:
    """The best instruction set of this CPU that the native kernels know."""
    if platform.machine() in X86_MACHINES:
        if torch.cpu._is_avx512_supported() and torch.cpu._is_vnni_supported():
            return "avx512_vnni"
        if torch.cpu._is_avx2_supported():
            return "avx2"
    return "portable"


def has_instruction_set(wanted: InstructionSet) -> bool:
    """Whether this CPU can run what is built for an instruction set."""
    ranks: tuple[InstructionSet, ...] = ("portable", "avx2", "avx512_vnni")
    return ranks.index(wanted) <= ranks.index(instruction_set())
