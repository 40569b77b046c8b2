"""Decode attention over the shapes of Llama models, and what else a model may ask of it."""

from __future__ import annotations

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention.splits.triton_kernel import plan_kernel
from compute_svc.kernels.decode_attention.triton_kernel import decode_kernel, launch_constants
from compute_svc.kernels.decode_attention.triton_plan import ITEM_NUMBERS, tile_shape
from tests.ahead_of_time.compiling import Case

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8", torch.float8_e4m3fn: "fp8e4nv"}

_POINTERS = ("data", "page_table", "items", "partials", "stats", "counters", "out", "q")

_STRIDES = ("q_row_stride", "q_head_stride", "out_stride", "num_slots")


def _case(
    heads: tuple[int, int, int],
    stored: torch.dtype,
    group: int = 0,
    *,
    asked: torch.dtype = torch.bfloat16,
    slopes: bool = False,
    softcap: float | None = None,
    sink_logits: bool = False,
) -> Case:
    spec = AttentionSpec(*heads, 16, 1 << 16, 0.125, None, (0.5,) * heads[0] if slopes else None, softcap=softcap, stored=stored)
    tile = tile_shape(spec)
    features = "".join(f" {name}" for name, given in {"slopes": slopes, "softcap": softcap, "sink_logits": sink_logits}.items() if given)
    absent = {} if group else {"scales": None}
    absent |= {} if slopes else {"slopes": None}
    absent |= {} if sink_logits else {"sink_logits": None}
    optional = tuple(name for name in ("scales", "slopes", "sink_logits") if name not in absent)
    return Case(
        f"decode_attention {_TYPES[stored]}{f' g{group}' if group else ''} {'x'.join(map(str, heads))}{features}",
        decode_kernel,
        {
            **dict.fromkeys(("q", "out"), f"*{_TYPES[asked]}"),
            **dict.fromkeys(("slopes", "sink_logits", "partials", "stats"), "*fp32"),
            **dict.fromkeys((*_STRIDES, "table_stride"), "i32"),
            **dict.fromkeys(("score_scale", "softcap"), "fp32"),
            "data": f"*{_TYPES[stored]}",
            "scales": "*fp16",
            "page_table": "*i64",
            "items": "*i32",
            "counters": "*i32",
        },
        {**absent, **launch_constants(spec, asked, group), "INTERPRETED": False},
        divisible=(*_POINTERS, *optional, *_STRIDES),
        num_warps=tile.warps,
        num_stages=tile.stages,
        instructions=() if torch.float32 in (stored, asked) else ("mma.sync",),
        capabilities=(89, 90) if stored == torch.float8_e4m3fn else (),
    )


CASES = [
    _case((32, 8, 128), torch.bfloat16),
    _case((32, 8, 64), torch.bfloat16),
    _case((32, 8, 128), torch.int8, 8),
    _case((32, 8, 128), torch.int8, 64),
    _case((32, 8, 64), torch.int8, 64),
    _case((32, 8, 64), torch.int8, 8),
    _case((16, 8, 256), torch.bfloat16, softcap=50.0),
    _case((16, 8, 256), torch.int8, 64, softcap=50.0),
    _case((71, 1, 64), torch.bfloat16, slopes=True, sink_logits=True),
    _case((32, 32, 96), torch.int8, 32),
    _case((32, 8, 128), torch.float8_e4m3fn, 64),
    _case((32, 8, 128), torch.float32, asked=torch.float32),
    Case(
        "decode_attention plan",
        plan_kernel,
        {
            "lengths": "*i64",
            **dict.fromkeys(("items", "counters"), "*i32"),
            **dict.fromkeys(("num_requests", "num_items", "wanted", "most", "num_counters", "window", "split_tiles"), "i32"),
        },
        {"REQUESTS": 256, "TILE": 64, "NUMBERS": ITEM_NUMBERS},
        divisible=("lengths", "items", "counters"),
    ),
]
