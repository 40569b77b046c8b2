"""Kernels that work row by row, and the one that places heads: Llama-3-8B, Llama-3.2-1B and others with odd sizes."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from compute_svc.kernels.gated_linear.triton_kernel import gate_kernel
from compute_svc.kernels.layer_norm.triton_kernel import layer_norm_kernel
from compute_svc.kernels.place_heads.triton_kernel import place_heads_kernel
from compute_svc.kernels.quantise_rows.triton_kernel import quantise_rows_kernel
from compute_svc.kernels.rms_norm.triton_kernel import rms_norm_kernel
from compute_svc.kernels.rotary.triton_kernel import rotary_kernel
from tests.ahead_of_time.compiling import Case

_STORED = {"bf16": ("*bf16", 0.0), "int8": ("*i8", 127.0), "fp8": ("*u8", 448.0)}


def _rms_norm(columns: int, heads: int, rows: int, block: int, warps: int) -> Case:
    weight = "*bf16" if heads == 1 else "*fp32"
    return Case(
        f"rms_norm bf16 [rows, {columns}]" if heads == 1 else f"rms_norm bf16 of {heads} heads of {columns}",
        rms_norm_kernel,
        {
            "x": "*bf16",
            "weight": weight,
            "out": "*bf16",
            "rows": "i32",
            "heads": "i32",
            "columns": "i32",
            "x_token_stride": "i32",
            "x_head_stride": "i32",
            "out_token_stride": "i32",
            "out_head_stride": "i32",
            "eps": "fp32",
        },
        {"PER_HEAD": heads > 1, "DTYPE": tl.bfloat16, "ROWS": rows, "BLOCK": block, "INTERPRETED": False},
        divisible=("x", "weight", "out", "columns", "x_token_stride", "x_head_stride", "out_token_stride", "out_head_stride"),
        num_warps=warps,
    )


def _place_heads(heads: int, kv_heads: int, width: int, stored: str, group: int, run: int, together: int, norm: bool = False) -> Case:
    data, largest = _STORED[stored]
    signature = {"heads": "*bf16", "slots": "*i64", "cos": "*fp32", "sin": "*fp32", "data": data}
    signature |= {"token_stride": "i32", "head_stride": "i32", "angle_stride": "i32", "num_slots": "i32", "eps": "fp32"}
    constexprs: dict[str, Any] = {
        "NUM_HEADS": heads,
        "NUM_KV_HEADS": kv_heads,
        "WIDTH": width,
        "ROTARY": width,
        "LARGEST": largest,
        "DTYPE": tl.bfloat16,
    }
    constexprs |= {"HEADS": together, "RUN": run, "RUNS": 1 << (-(-width // run) - 1).bit_length(), "RUN_BLOCK": run, "INTERPRETED": False}
    constexprs["NORM_WIDTH"] = width if norm else 0
    given = []
    for name, is_given, kind in (("scales", group > 0, "*fp16"), ("norm_weight", norm, "*bf16")):
        if is_given:
            signature[name] = kind
            given.append(name)
        else:
            constexprs[name] = None
    return Case(
        f"place_heads bf16 {heads} + 2 * {kv_heads} of {width} as {stored} in {group}{' normalised' if norm else ''}",
        place_heads_kernel,
        signature,
        constexprs,
        divisible=("heads", "slots", "cos", "sin", "data", "token_stride", "head_stride", "angle_stride", "num_slots", *given),
    )


def _quantise_rows(columns: int, block: int, before: str) -> Case:
    signature = {"x": "*bf16", "codes": "*i8", "scales": "*fp32", "columns": "i32", "x_stride": "i32"}
    constexprs: dict[str, Any] = {"ACTIVATION": "silu" if before == "gated" else "none", "EPS": 1e-5, "BLOCK": block}
    for name, is_given, kind in (("up", before == "gated", "*bf16"), ("weight", before == "normalised", "*fp32")):
        if is_given:
            signature[name] = kind
        else:
            constexprs[name] = None
    return Case(
        f"quantise_rows bf16 [rows, {columns}] {before}",
        quantise_rows_kernel,
        signature,
        constexprs,
        divisible=("x", "codes", "columns", "x_stride", *(name for name in ("up", "weight") if name in signature)),
        num_warps=min(block // 512, 16),
    )


CASES = [
    _rms_norm(4096, 1, 1, 4096, 8),
    _rms_norm(128, 40, 8, 128, 2),
    Case(
        "layer_norm bf16 [rows, 8192]",
        layer_norm_kernel,
        {"x": "*bf16", "weight": "*bf16", "bias": "*bf16", "out": "*bf16", "columns": "i32", "x_stride": "i32", "eps": "fp32"},
        {"DTYPE": tl.bfloat16, "BLOCK": 8192, "INTERPRETED": False},
        divisible=("x", "weight", "bias", "out", "columns", "x_stride"),
        num_warps=16,
    ),
    *(
        Case(
            f"gated bf16 {activation}",
            gate_kernel,
            {"gate": "*bf16", "up": "*bf16", "out": "*bf16", "columns": "i32", "gate_stride": "i32", "up_stride": "i32"},
            {"ACTIVATION": activation, "DTYPE": tl.bfloat16, "BLOCK": 1024, "INTERPRETED": False},
            divisible=("gate", "up", "out", "columns", "gate_stride", "up_stride"),
        )
        for activation in ("silu", "gelu")
    ),
    Case(
        "rotary bf16 of heads of 128",
        rotary_kernel,
        {
            "x": "*bf16",
            "cos": "*fp32",
            "sin": "*fp32",
            "heads": "i32",
            "token_stride": "i32",
            "head_stride": "i32",
            "angle_stride": "i32",
        },
        {"HALF": 64, "DTYPE": tl.bfloat16, "HEADS": 8, "BLOCK": 64, "INTERPRETED": False},
        divisible=("x", "cos", "sin", "token_stride", "head_stride", "angle_stride"),
        num_warps=2,
    ),
    _quantise_rows(4096, 4096, "normalised"),
    _quantise_rows(14336, 16384, "gated"),
    _quantise_rows(28672, 32768, "gated"),
    _place_heads(32, 8, 128, "bf16", 0, 64, 8),
    _place_heads(32, 8, 64, "int8", 8, 8, 16),
    _place_heads(32, 8, 128, "fp8", 64, 64, 8, norm=True),
]
