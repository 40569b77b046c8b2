"""Kernels that work row by row."""

from __future__ import annotations

import triton.language as tl

from compute_svc.kernels.rms_norm.triton_kernel import rms_norm_kernel
from tests.ahead_of_time.compiling import Case

CASES = [
    Case(
        f"rms_norm bf16 [rows, {columns}]",
        rms_norm_kernel,
        {"x": "*bf16", "weight": "*bf16", "out": "*bf16", "columns": "i32", "x_stride": "i32", "eps": "fp32"},
        {"DTYPE": tl.bfloat16, "BLOCK": block, "INTERPRETED": False},
        divisible=("x", "weight", "out", "columns", "x_stride"),
        num_warps=warps,
    )
    for columns, block, warps in ((576, 1024, 2), (4096, 4096, 8), (8192, 8192, 16))
]
