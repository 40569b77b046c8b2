"""Mixtures of experts: Mixtral-8x7B (8 experts, 2 for a token) and Qwen3-30B-A3B (128, 8 for a token)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from compute_svc.kernels.grouped_mlp.cuts import cut_for, rows_of_tile
from compute_svc.kernels.grouped_mlp.packed import GroupedFormat, GroupedMlps, GroupedWeight
from compute_svc.kernels.grouped_mlp.triton_kernel import grouped_codes_kernel, grouped_linear_kernel, plan_kernel, sum_kernel
from tests.ahead_of_time.compiling import Case

_CODES = {"float": "bf16", "int8": "i8", "fp8": "fp8e4nv", "groups": "i16"}


class Mixture(NamedTuple):
    """Sizes of one."""

    name: str
    experts: int
    per_token: int
    hidden: int
    width: int


MIXTRAL = Mixture("Mixtral", 8, 2, 4096, 14336)
QWEN3 = Mixture("Qwen3", 128, 8, 2048, 768)
GPT_OSS = Mixture("gpt-oss", 32, 4, 2880, 2880)


def _capabilities(kind: GroupedFormat, *, is_hopper: bool, is_large: bool) -> tuple[int, ...]:
    """What such a cut is for: large ones differ before Hopper."""
    every = (89, 90) if kind == "fp8" else (80, 89, 90)
    return tuple(one for one in every if not is_large or (one == 90) == is_hopper)


def _case(
    mixture: Mixture,
    tokens: int,
    kind: GroupedFormat,
    *,
    is_gated: bool,
    group: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    is_hopper: bool = True,
    has_offsets: bool = False,
) -> Case:
    num_rows = tokens * mixture.per_token
    inputs, outputs = (mixture.hidden, mixture.width) if is_gated else (mixture.width, mixture.hidden)
    most = min(mixture.experts, num_rows)
    num_groups = 1 if group is None else inputs // group
    scales = torch.empty((mixture.experts, 1, num_groups), device="meta")
    weight = GroupedWeight(
        kind, inputs, scales, None if kind == "float" else scales, scales if has_offsets else None, group=group or inputs, bits=4,
        block=min(group or 128, 128),
    )  # fmt: skip
    rows = rows_of_tile(num_rows, GroupedMlps(weight, weight, "silu"), dtype)
    cut = cut_for(weight, rows, (num_rows - most) // rows + most, outputs, dtype, is_gated=is_gated, is_hopper=is_hopper)
    number = "bf16" if dtype == torch.bfloat16 else "fp32"
    pointers = {"x": f"*{_CODES[kind]}" if kind in ("int8", "fp8") else f"*{number}", "weight": f"*{_CODES[kind]}", "out": f"*{number}"}
    pointers |= {"order": "*i32", "tiles": "*i32"}
    if kind == "float":
        pointers["weight"] = f"*{number}"
    elif kind == "groups":
        pointers |= {"scales": "*fp16"} | ({"offsets": "*fp32"} if has_offsets else {})
    else:
        pointers |= {"row_scales": "*fp32", "scales": "*fp32"}
    is_clamped = mixture is GPT_OSS
    pointers |= {"bias": f"*{number}"} if is_clamped else {}
    ints = dict.fromkeys(("num_tiles", "N", "K", "x_stride", "group", "num_groups", "row_groups", "weight_stride"), "i32")
    dtype_of = tl.bfloat16 if number == "bf16" else tl.float32
    constexprs = {
        "GATED": is_gated, "ACTIVATION": "silu" if is_gated and not is_clamped else "none", "CLAMPED": is_gated and is_clamped,
        "PER_TOKEN": mixture.per_token, "DTYPE": dtype_of, "BLOCK_M": rows, "BLOCK_N": cut.n, "BLOCK_K": cut.k, "INTERPRETED": False,
    }  # fmt: skip
    if kind == "groups":
        constexprs |= {"BITS": 4, "LOOKUP": "", "RUN": weight.block, "GROUP": group, "EVEN": True, "X_DTYPE": dtype_of, "PLAIN": False}
    else:
        constexprs |= {"FORMAT": kind, "GROUPED": num_groups > 1, "EVEN": inputs % cut.k == 0}
    kernel = grouped_codes_kernel if kind == "groups" else grouped_linear_kernel
    given = pointers | ints | {"alpha": "fp32", "limit": "fp32"}
    return Case(
        f"grouped {'gate and up' if is_gated else 'down'} of {mixture.name} {kind} {number} {tokens} tokens"
        + f" in groups of {group}" * bool(group)
        + " with offsets" * has_offsets,
        kernel,
        {name: given[name] for name in kernel.arg_names if name in given},
        {name: None for name in ("row_scales", "table", "scales", "offsets", "bias") if name in kernel.arg_names and name not in pointers}
        | constexprs,
        divisible=tuple(name for name in (*pointers, "N", "K", "x_stride", "group", "weight_stride") if name in kernel.arg_names),
        num_warps=cut.warps,
        num_stages=cut.stages,
        instructions=("wgmma",) if cut.n >= 64 and number == "bf16" else ("mma.sync",) if number == "bf16" else (),
        capabilities=_capabilities(kind, is_hopper=is_hopper, is_large=weight.is_grouped and rows > 16 and is_gated),
    )


CASES = [
    _case(MIXTRAL, 2048, "float", is_gated=True),
    _case(MIXTRAL, 1, "float", is_gated=True),
    _case(QWEN3, 1, "float", is_gated=True),
    _case(QWEN3, 1, "float", is_gated=False),
    _case(QWEN3, 64, "float", is_gated=True),
    _case(QWEN3, 256, "float", is_gated=True),
    _case(QWEN3, 1024, "float", is_gated=True),
    _case(MIXTRAL, 2048, "float", is_gated=False),
    _case(MIXTRAL, 4, "float", is_gated=True, dtype=torch.float32),
    _case(GPT_OSS, 4, "float", is_gated=True),
    _case(QWEN3, 4, "int8", is_gated=True),
    _case(QWEN3, 4096, "int8", is_gated=False),
    _case(MIXTRAL, 4, "fp8", is_gated=True),
    _case(MIXTRAL, 2048, "fp8", is_gated=True),
    _case(QWEN3, 4096, "fp8", is_gated=True, group=128),
    _case(QWEN3, 4096, "fp8", is_gated=True, group=128, is_hopper=False),
    _case(QWEN3, 4, "fp8", is_gated=True, group=128),
    _case(MIXTRAL, 4, "groups", is_gated=True, group=128),
    _case(QWEN3, 1024, "groups", is_gated=True, group=128),
    _case(QWEN3, 1024, "groups", is_gated=True, group=128, is_hopper=False),
    _case(MIXTRAL, 2048, "groups", is_gated=False, group=64),
    _case(MIXTRAL, 4, "groups", is_gated=True, group=128, has_offsets=True),
    _case(QWEN3, 1024, "groups", is_gated=True, group=128, has_offsets=True),
    _case(QWEN3, 1024, "groups", is_gated=True, group=128, has_offsets=True, is_hopper=False),
    _case(MIXTRAL, 2048, "groups", is_gated=False, group=64, has_offsets=True),
    Case(
        "plan of 128 experts",
        plan_kernel,
        {"chosen": "*i64", "order": "*i32", "tiles": "*i32", "num_rows": "i32", "num_tiles": "i32"},
        {"EXPERTS": 128, "BINS": 256, "BLOCK_M": 16, "BLOCK": 4096},
        divisible=("chosen", "order", "tiles"),
        num_warps=8,
    ),
    Case(
        "sums of 8 of 128 experts",
        sum_kernel,
        {"answers": "*bf16", "weights": "*fp32", "chosen": "*i64", "out": "*fp32", "columns": "i32"},
        {"PER_TOKEN": 8, "SLOTS": 8, "BLOCK": 1024},
        divisible=("answers", "weights", "chosen", "out", "columns"),
    ),
]
