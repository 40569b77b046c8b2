"""Products of floating numbers with bits that do not depend on the number of rows."""

from __future__ import annotations

import torch
import triton.language as tl

from compute_svc.kernels.linear.triton_kernel import BLOCK_INPUTS, linear_kernel, segments_for, tiles_for
from tests.ahead_of_time.compiling import Case


def _case(rows: int, outputs: int, inputs: int, *, add: bool = False, dtype: torch.dtype = torch.bfloat16) -> Case:
    tiles, segments = tiles_for(rows, dtype), segments_for(outputs, inputs)
    splits = segments if -(-rows // tiles.m) * -(-outputs // tiles.n) < 132 else 1
    word = "bf16" if dtype == torch.bfloat16 else "fp32"
    pointers = dict.fromkeys(("x", "weight", "out", *(["other"] * add)), f"*{word}")
    pointers |= {"partials": "*fp32", "counters": "*i32"} if splits > 1 else {}
    none = {name: None for name in ("bias", "other", "partials", "counters") if name not in pointers}
    constexprs = {
        "ACTIVATION": "none", "COMBINE": "add" if add else "none", "DTYPE": tl.bfloat16 if word == "bf16" else tl.float32, "EVEN": True,
        "BLOCK_M": tiles.m, "BLOCK_N": tiles.n, "BLOCK_K": BLOCK_INPUTS, "SPLITS": splits, "SEGMENTS": segments // splits,
        "INTERPRETED": False,
    }  # fmt: skip
    return Case(
        f"batch-invariant linear {word} [{rows}, {inputs}] to {outputs}, {splits} splits, {segments} segments",
        linear_kernel,
        pointers | dict.fromkeys(("M", "N", "K", "x_stride", "segment_inputs"), "i32"),
        none | constexprs,
        divisible=(*pointers, "N", "K", "x_stride", "segment_inputs"),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        instructions=("wgmma",) if word == "bf16" else (),
    )


CASES = [
    _case(1, 4096, 4096, add=True),
    _case(1, 128256, 4096),
    _case(32, 6144, 4096),
    _case(64, 2048, 8192, add=True),
    _case(512, 4096, 14336, add=True),
    _case(2048, 28672, 4096),
    _case(2048, 4096, 14336, add=True),
    _case(1, 4096, 4096, dtype=torch.float32),
]
