"""Products with quantised weights."""

from __future__ import annotations

import torch
import triton.language as tl

from compute_svc.kernels.fp8_linear.triton_kernel import quantise_rows_to_fp8_kernel
from compute_svc.kernels.group_linear.lookup import lookup_program
from compute_svc.kernels.group_linear.triton_kernel import group_linear_kernel, numbers_kernel
from compute_svc.kernels.group_linear.triton_kernel import tiles_for as group_tiles_for
from compute_svc.kernels.int_linear.triton_kernel import FEW_ROWS, int_linear_kernel, splits_for, tiles_for
from compute_svc.stored_weights.codes import NF4
from tests.ahead_of_time.compiling import Case


def _int_case(
    rows: int, outputs: int, inputs: int, *, activation: str = "none", combine: str = "none", code: str = "i8", is_grouped: bool = False
) -> Case:
    tiles = tiles_for(rows, is_float=code != "i8")
    num_tiles = -(-rows // tiles.m) * -(-outputs // tiles.n)
    splits = splits_for(tiles, num_tiles, inputs)
    pointers = {"rows": f"*{code}", "row_scales": "*fp32", "weight": f"*{code}", "scales": "*fp32", "out": "*bf16", "counters": "*i32"}
    none = {"row_sums": None, "offsets": None, "bias": None}
    pointers |= {"other": "*bf16"} if combine != "none" else {}
    pointers |= {"partials": "*i32" if code == "i8" else "*fp32"} if splits > 1 else {}
    none |= {name: None for name in ("other", "partials") if name not in pointers}
    # Scales of few rows of int8 lie as they are made, others by groups; a stride of 1 is compiled in.
    is_as_made = code == "i8" and rows <= FEW_ROWS
    strides = {"row_stride": 1, "row_group_stride": 1, "output_stride": 1, "group_stride": 1}
    if is_grouped:
        strides = {"row_group_stride" if is_as_made else "row_stride": 1, "output_stride": 1}
    written = [name for name in ("row_stride", "row_group_stride", "output_stride", "group_stride") if name not in strides]
    numbers = dict.fromkeys(("M", "N", "K", *written, "split_inputs"), "i32")
    constexprs = {
        "ACTIVATION": activation, "COMBINE": combine, "DTYPE": tl.bfloat16, "INTEGERS": code == "i8",
        "GROUP": 128 if is_grouped else 0, "ROWS_IN_GROUPS": is_grouped, "BY_GROUPS": is_grouped and not is_as_made, "EVEN": True,
        "BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k, "SPLITS": splits, "INTERPRETED": False,
    }  # fmt: skip
    return Case(
        f"int_linear {code} bf16 [{rows}, {inputs}] to {outputs}" + " in groups" * is_grouped,
        int_linear_kernel,
        pointers | numbers,
        none | strides | constexprs,
        divisible=(*pointers, "N", "K", *written, "split_inputs"),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        instructions=("wgmma",),
        capabilities=() if code == "i8" else (89, 90),
    )


def _group_case(
    rows: int, outputs: int, inputs: int, group: int, *, bits: int = 4, offsets: bool = False, is_nf4: bool = False, is_hopper: bool = True
) -> Case:
    block = min(group, 128)
    tiles = group_tiles_for(rows, block, torch.bfloat16, is_hopper=is_hopper, has_offsets=offsets)
    num_tiles = -(-rows // tiles.m) * -(-outputs // tiles.n)
    splits = splits_for(tiles, num_tiles, inputs * bits // 16)
    pointers = {"x": "*bf16", "weight": "*i16", "scales": "*fp32" if is_nf4 else "*fp16", "out": "*bf16", "counters": "*i32"}
    pointers |= {"table": "*fp32"} if is_nf4 else {}
    pointers |= {"offsets": "*fp32"} if offsets else {}
    pointers |= {"partials": "*fp32"} if splits > 1 else {}
    none = {name: None for name in ("table", "offsets", "bias", "other", "partials") if name not in pointers}
    numbers = dict.fromkeys(("M", "N", "K", "x_stride", "weight_stride", "split_blocks"), "i32")
    constexprs = {
        "BITS": bits, "LOOKUP": lookup_program(NF4) if is_nf4 else "", "RUN": block, "GROUP": group, "EVEN": True, "ACTIVATION": "none", "COMBINE": "none", "X_DTYPE": tl.bfloat16, "DTYPE": tl.bfloat16, "PLAIN": False,
        "BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": tiles.k, "SPLITS": splits, "INTERPRETED": False,
    }  # fmt: skip
    return Case(
        f"group_linear {'nf4' if is_nf4 else f'int{bits}'} in groups of {group} bf16 [{rows}, {inputs}] to {outputs}"
        + ", offsets" * offsets,
        group_linear_kernel,
        pointers | numbers,
        none | constexprs,
        divisible=(*pointers, "N", "K", "x_stride", "weight_stride"),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        instructions=("wgmma",),
        capabilities=(80, 89) if not is_hopper else (90,) if rows >= 64 or offsets else (),
    )


CASES = [
    _int_case(1, 4096, 4096, combine="add"),
    _int_case(1, 28672, 4096, activation="silu"),
    _int_case(32, 4096, 14336, combine="add"),
    _int_case(64, 2048, 8192, combine="add"),
    _int_case(128, 6144, 4096),
    _int_case(128, 4096, 4096, combine="add"),
    _int_case(2048, 4096, 4096, combine="add"),
    _int_case(2048, 28672, 4096, activation="silu"),
    _int_case(2048, 28672, 4096, combine="mul"),
    _group_case(1, 4096, 4096, 128),
    _group_case(1, 28672, 4096, 128, offsets=True),
    _group_case(1, 28672, 4096, 128, offsets=True, is_hopper=False),
    _group_case(32, 4096, 14336, 128, offsets=True, is_hopper=False),
    _group_case(256, 4096, 4096, 128, offsets=True),
    _group_case(32, 4096, 14336, 32),
    _group_case(64, 4096, 4096, 64),
    _group_case(64, 4096, 4096, 64, is_hopper=False),
    _group_case(256, 28672, 4096, 128),
    _group_case(1, 4096, 4096, 128, bits=8),
    _group_case(1, 4096, 4096, 64, is_nf4=True),
    _group_case(32, 4096, 14336, 64, is_nf4=True),
    _group_case(64, 28672, 4096, 64, is_nf4=True),
    Case(
        "numbers of int4 in groups of 128, bf16 [28672, 4096]",
        numbers_kernel,
        {"weight": "*i16", "scales": "*fp16", "out": "*bf16", **dict.fromkeys(("N", "K", "weight_stride", "group"), "i32")},
        {"table": None, "offsets": None, "BITS": 4, "RUN": 128, "DTYPE": tl.bfloat16, "BLOCK_N": 32, "INTERPRETED": False},
        divisible=("weight", "scales", "out", "N", "K", "weight_stride", "group"),
    ),
    _int_case(1, 4096, 4096, code="fp8e4nv"),
    _int_case(64, 4096, 14336, code="fp8e4nv", is_grouped=True),
    _int_case(2048, 28672, 4096, code="fp8e4nv"),
    _int_case(2048, 4096, 14336, code="fp8e4nv", is_grouped=True, combine="add"),
    _int_case(2048, 28672, 4096, is_grouped=True),
    Case(
        "rows of bf16 [rows, 14336] to fp8",
        quantise_rows_to_fp8_kernel,
        {"x": "*bf16", "codes": "*fp8e4nv", "scales": "*fp32", **dict.fromkeys(("columns", "x_stride"), "i32")},
        {"num_groups": 1, "row_stride": 1, "group_stride": 1, "GROUPS": 1, "GROUP": 16384, "INTERPRETED": False},
        divisible=("x", "codes", "scales", "columns", "x_stride"),
        num_warps=8,
        capabilities=(89, 90),
    ),
]
