"""Prefill attention of Llama-3-8B and 1B, and others that need most of a GPU, with the tiles that a launch chooses."""

from __future__ import annotations

import torch
import triton.language as tl

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.prefill_attention.splits import SPLIT_NUMBERS
from compute_svc.kernels.prefill_attention.triton_kernel import prefill_attention_kernel, summed_of
from compute_svc.kernels.prefill_attention.triton_plan import HOPPER, Device, Tiles, pack_of, tiles_for
from compute_svc.kernels.triton_parts import TL_DTYPES
from tests.ahead_of_time.compiling import Case

_BEFORE_HOPPER = Device(False, 108)
_POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int8: "*i8", torch.float8_e4m3fn: "*fp8e4nv"}


def spec_of(
    head_dim: int, stored: torch.dtype = torch.bfloat16, *, window: int | None = None, softcap: float | None = None, group: int = 4
) -> AttentionSpec:
    """With 8 key heads and pages of 16 tokens."""
    return AttentionSpec(8 * group, 8, head_dim, 16, 1000, head_dim**-0.5, window, softcap=softcap, stored=stored)


def case_of(
    name: str,
    spec: AttentionSpec,
    tiles: Tiles,
    capabilities: tuple[int, ...],
    *,
    codes: int = 0,
    slopes: bool = False,
    split: bool = False,
) -> Case:
    """A launch over bfloat16, or over float32 where the store is float32; split: over splits of tokens, with sink logits."""
    dtype = torch.float32 if spec.stored == torch.float32 else torch.bfloat16
    pack = pack_of(tiles.rows, spec)
    pointers = {"q": _POINTERS[dtype], "data": _POINTERS[spec.stored], "out": _POINTERS[dtype]}
    if codes:
        pointers["scales"] = "*fp16"
    if slopes:
        pointers["slopes"] = "*fp32"
    if split:
        pointers |= {"sink_logits": "*fp32", "partials": "*fp32", "stats": "*fp32", "counters": "*i32"}
    absent = {name for name in ("scales", "slopes", "sink_logits", "partials", "stats", "counters") if name not in pointers}
    block_d = 1 << (spec.head_dim - 1).bit_length()
    piece, summed = summed_of(tiles, block_d)
    strides = ("q_stride", "head_stride", "out_stride", "num_slots")
    return Case(
        f"prefill_attention {name} rows {tiles.rows}{' split' if split else ''}",
        prefill_attention_kernel,
        {**pointers, **dict.fromkeys((*strides, "table_stride"), "i32"), "scale": "fp32"}
        | dict.fromkeys(("blocks", "splits", "page_table"), "*i64"),
        dict.fromkeys(absent if split else absent | {"splits"})
        | {"NUM_KV_HEADS": spec.num_kv_heads, "GROUP": spec.group_size, "PACK": pack, "QUERIES": tiles.rows // pack, "PARTS": 1}
        | {"PAGE": spec.page_size_tokens, "D": spec.head_dim, "BLOCK_D": block_d, "CODES": codes}
        | {"WINDOW": spec.window, "SOFTCAP": spec.softcap}
        | {"ROWS": tiles.rows, "TOKENS": tiles.tokens, "SLOT": tl.int32}
        | {"COMPUTE": TL_DTYPES[dtype], "OUT": TL_DTYPES[dtype]}
        | {"NUMBERS": SPLIT_NUMBERS, "PIECE": piece, "SUMMED": summed, "INTERPRETED": False},
        divisible=(*pointers, *strides),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
        instructions=("wgmma",) if dtype != torch.float32 and tiles.rows >= 64 else (),
        capabilities=capabilities,
    )


def _cases(name: str, rows: int, spec: AttentionSpec, *, codes: int = 0, slopes: bool = False, split: bool = False) -> list[Case]:
    """With Hopper's tiles for Hopper, and with the others' for all others that have what the store holds."""
    dtype = torch.float32 if spec.stored == torch.float32 else torch.bfloat16
    hopper, before = (tiles_for(rows, spec.head_dim, dtype, codes > 0 or slopes, device) for device in (HOPPER, _BEFORE_HOPPER))
    others = (89,) if spec.stored == torch.float8_e4m3fn else (80, 89)
    if hopper == before:
        return [case_of(name, spec, hopper, (*others, 90), codes=codes, slopes=slopes, split=split)]
    return [
        case_of(name, spec, hopper, (90,), codes=codes, slopes=slopes, split=split),
        case_of(name, spec, before, others, codes=codes, slopes=slopes, split=split),
    ]


CASES = [
    *_cases("bf16 D 128", 128, spec_of(128)),
    *_cases("bf16 D 128", 64, spec_of(128)),
    *_cases("bf16 D 128", 16, spec_of(128)),
    *_cases("bf16 D 64", 128, spec_of(64)),
    *_cases("int8 in groups of 8, D 128", 128, spec_of(128, torch.int8), codes=8),
    *_cases("float8 in groups of 64, D 128", 128, spec_of(128, torch.float8_e4m3fn), codes=64),
    *_cases("bf16 D 256 softcap window", 128, spec_of(256, window=4096, softcap=50.0, group=2)),
    *_cases("bf16 D 128 slopes", 128, spec_of(128, group=1), slopes=True),
    *_cases("float32 D 256", 16, spec_of(256, torch.float32)),
    *_cases("bf16 D 128", 128, spec_of(128), split=True),
    *_cases("bf16 D 128", 16, spec_of(128), split=True),
    *_cases("int8 in groups of 8, D 128", 128, spec_of(128, torch.int8), codes=8, split=True),
    *_cases("bf16 D 256 softcap window", 128, spec_of(256, window=4096, softcap=50.0, group=2), split=True),
    *_cases("float32 D 256", 16, spec_of(256, torch.float32), split=True),
]
