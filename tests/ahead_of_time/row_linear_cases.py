"""Products of one row: Llama-3-8B and Llama-3.2-1B in bfloat16, and in codes of 8 bits."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from compute_svc.kernels.row_linear.triton_kernel import FLOAT8_TILES, GATED_TILES, TILES, row_kernel
from tests.ahead_of_time.compiling import Case


def _row(name: str, inputs: int, *, ahead: int = 0, gated: bool = False, norm: bool = False, add: bool = False, codes: str = "") -> Case:
    tiles = GATED_TILES if gated else FLOAT8_TILES if codes == "fp8" else TILES
    words = {"int8": "*i32", "fp8": "*fp8e4nv"}.get(codes, "*bf16")
    signature = {"x": words, "weight": words, "out": "*bf16", "N": "i32", "K": "i32", "eps": "fp32"}
    constexprs: dict[str, Any] = {
        "GATED": gated,
        "INTEGERS": codes == "int8",
        "ACTIVATION": "silu" if gated else "none",
        "DTYPE": tl.bfloat16,
    }
    given = {"x_scale": ("*fp32", codes != ""), "scales": ("*fp32", codes != ""), "norm_weight": ("*bf16", norm), "other": ("*bf16", add)}
    given["bias"] = ("*bf16", False)
    for argument, (kind, is_given) in given.items():
        if is_given:
            signature[argument] = kind
        else:
            constexprs[argument] = None
    block = tiles.bytes // {"int8": 4, "fp8": 1}.get(codes, 2)
    constexprs |= {
        "EVEN": inputs % block == 0,
        "BLOCK_N": tiles.n,
        "BLOCK_K": block,
        "STAGES": tiles.stages,
        "AHEAD_BYTES": ahead,
        "INTERPRETED": False,
    }
    pointers = [argument for argument, kind in signature.items() if kind.startswith("*")]
    return Case(
        name,
        row_kernel,
        signature,
        constexprs,
        divisible=(*pointers, "K"),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
        capabilities=(90,) if ahead else (89, 90) if codes == "fp8" else (),
    )


CASES = [
    _row("row bf16 of norm [4096]", 4096, norm=True),
    _row("row bf16 + residual [4096]", 4096, add=True),
    _row("row bf16 of norm, gated [4096]", 4096, norm=True, gated=True),
    _row("row bf16 of norm, gated, ahead [4096]", 4096, norm=True, gated=True, ahead=4096),
    _row("row bf16 + residual [14336]", 14336, add=True),
    _row("row bf16 + residual [576]", 576, add=True),
    _row("row int8 + residual [14336]", 14336 // 4, add=True, codes="int8"),
    _row("row fp8 + residual [14336]", 14336, add=True, codes="fp8"),
]
