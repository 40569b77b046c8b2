"""Prefill attention: the tile sizes that a launch chooses for each GPU's shared memory are those of the smallest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton.language as tl

from compute_svc.kernels.attention_spec import AttentionSpec
from compute_svc.kernels.prefill_attention.triton_kernel import prefill_attention_kernel
from compute_svc.kernels.prefill_attention.triton_plan import HOPPER, Limits, pack_of, tiles_for
from tests.ahead_of_time.compiling import Case


def _case(name, rows, head_dim, group, *, stored="bf16", codes=0, compute=tl.bfloat16, limits=HOPPER, window=None, softcap=None, tiles=None, page=16):
    block_d = 1 << (head_dim - 1).bit_length()
    tiles = tiles or tiles_for(rows, block_d, compute.primitive_bitwidth // 8, codes > 0, limits)
    pack = group if tiles.rows // group else 1
    q = {tl.bfloat16: "*bf16", tl.float32: "*fp32"}[compute]
    return Case(
        name,
        prefill_attention_kernel,
        {"q": q, "data": f"*{stored}", "scales": "*fp16", "out": q, "blocks": "*i64", "page_table": "*i64",
         "q_stride": "i32", "head_stride": "i32", "out_stride": "i32", "table_stride": "i32", "num_slots": "i32", "scale": "fp32"},
        {"NUM_KV_HEADS": 8, "GROUP": group, "PACK": pack, "QUERIES": tiles.rows // pack, "PARTS": 1, "PAGE": page, "D": head_dim, "BLOCK_D": block_d,
         "CODES": codes, "WINDOW": window, "SOFTCAP": softcap, "ROWS": tiles.rows, "TOKENS": tiles.tokens, "COMPUTE": compute, "OUT": compute,
         "INTERPRETED": False, "slopes": None, "sink_logits": None, **({} if codes else {"scales": None})},
        divisible=("q", "data", *(("scales",) if codes else ()), "out", "q_stride", "head_stride", "out_stride", "num_slots"),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, instructions=("wgmma",) if tiles.rows >= 64 and compute != tl.float32 else ())

CASES = [
  _case("pa bf16 d128 m128", 128, 128, 4),
  _case("pa bf16 d64 m128", 128, 64, 4),
  _case("pa bf16 d128 m64", 64, 128, 4),
  _case("pa bf16 d128 m16", 16, 128, 4),
  _case("pa int8 d128 m128 g8", 128, 128, 4, stored="i8", codes=8),
  _case("pa fp8 d128 m128 g64", 128, 128, 4, stored="fp8e4nv", codes=64),
  _case("pa f32 d128", 16, 128, 4, stored="fp32", compute=tl.float32),
  _case("pa f32 d256", 16, 256, 4, stored="fp32", compute=tl.float32),
  _case("pa bf16 d256 m128", 128, 256, 2, softcap=50.0, window=4096),
]
