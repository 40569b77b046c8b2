"""Attention over KV pages where they lie: decode rows and prefill chunks by one arithmetic, without copies of keys and values.

The promise is that of kernels/attention/kv_chunks.py: what a query gets depends, bit for bit, on its own request's tokens up to it and on nothing
else. Here it holds because every query goes through the same operations, in this order. All are float32; `fma` rounds a product and a sum once;
hidden tokens are left out, not multiplied by zero.

- A head has zeros added up to a multiple of 16. A score is four sums, each over every fourth dimension from the first on, `fma` by `fma`;
  (s0 + s1) + (s2 + s3), times scale. With a softcap it is softcap * tanh(that), with the scale divided by it before.
- Slopes add slope * (key's position - query's); rounded slopes as `slope_bias` of kernels/attention/kv_chunks.py has it.
- Tokens are taken in chunks that start at multiples of 128 of the position. Of a chunk: m, the largest score; weights e^(score - m); l, their
  sum in 16 lanes by position, joined by halves; o, the values times their weights, `fma` by `fma`, token after token.
- Chunks are joined in order to M, L, O, at first -inf, 0, 0: with N the larger of M and m, a = e^(M - N) and b = e^(m - N),
  L = fma(L, a, l * b), O = fma(O, a, o * b), M = N. What a query gets is O / L.
- The sink section of attention sinks is a chunk before all others. A sink logit is M at first, with L = 1.
- e^x is 2^n times a polynomial, tanh a polynomial near zero and made of e^2x elsewhere: source/attention_math.h.

Threads share the work by query blocks, and long contexts by stretches of chunks, joined in the same order: that changes no bit, and no
instruction set does. tests/fakes/attention_arithmetic.py does the same with numpy.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.attention.kv_chunks import slopes_of
from compute_svc.kernels.native.library import DTYPES, NativeLibrary
from compute_svc.kernels.paged_kv.kv_layer import KvLayer

_log = logging.getLogger(__name__)

# Query rows of a block, in source/attention.cpp: those that share a key head are in one block.
_MAX_GROUP_SIZE = 96

_STORED = frozenset({*DTYPES, torch.int8})

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_HEADS = (_POINTER, _NUMBER, _NUMBER)


class _Plan(ctypes.Structure):
    """`Plan` of source/attention.h."""

    _fields_ = (
        *(
            (name, _NUMBER)
            for name in ("num_heads", "num_kv_heads", "head_dim", "page_size", "num_pages", "window", "sinks", "rounded_slopes")
        ),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
        *(("slopes", _POINTER), ("num_requests", _NUMBER), ("page_table", _POINTER), ("table_width", _NUMBER)),
        *(("lengths", _POINTER), ("starts", _POINTER)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class NativePlan:
    """What the library is told of a step.

    Attributes:
        spec: The model's attention.
        attend: The library's function.
        address: Of the plan.
        kept: What the address leads to.
    """

    spec: AttentionSpec
    attend: Callable[..., None]
    address: int
    kept: tuple[object, ...]


@cache
def covers(spec: AttentionSpec) -> bool:
    """Whether the library computes this attention. Effects: logs where it does not, once."""
    if spec.group_size > _MAX_GROUP_SIZE:
        reason = f"{spec.group_size} query heads share a key head, more than {_MAX_GROUP_SIZE}"
    elif spec.stored not in _STORED:
        reason = f"native kernels read no {spec.stored}"
    else:
        return True
    _log.info("attention runs on torch's own operations: %s", reason)
    return False


def plan_native(
    library: NativeLibrary, page_table: torch.Tensor, kv_lengths: Sequence[int], query_starts: Sequence[int], spec: AttentionSpec
) -> NativePlan:
    """What all layers of a step share. Arguments as `plan_prefill` has them; decode rows are queries of one row each.

    Raises:
        IndexError: A request's pages are not in the store, or too few for its tokens.
    """
    pages = page_table.contiguous()
    slopes = slopes_of(spec, page_table.device)
    numbers = (_NUMBER * (2 * len(kv_lengths) + 1))(*kv_lengths, *query_starts)
    lengths = ctypes.addressof(numbers)
    plan = _Plan(
        *(spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.page_size_tokens, spec.num_pages),
        *(spec.window or 0, spec.sinks, spec.rounded_slopes, spec.scale, spec.softcap or 0.0),
        *(_address(slopes), len(kv_lengths), pages.data_ptr(), pages.shape[1]),
        *(lengths, lengths + ctypes.sizeof(_NUMBER) * len(kv_lengths)),
    )
    functions, wrong = _functions(library), _NUMBER()
    functions.check(ctypes.addressof(plan), ctypes.addressof(wrong))
    if wrong.value >= 0:
        raise IndexError(
            f"the pages of request {wrong.value} are not all in the store, or too few for its {kv_lengths[wrong.value]} tokens"
        )
    return NativePlan(spec, functions.attend, ctypes.addressof(plan), (plan, numbers, pages, slopes))


def native_attention(
    q: torch.Tensor,
    kv: KvLayer,
    plan: NativePlan,
    out: torch.Tensor,
    sink_q: torch.Tensor | None = None,
    sink_logits: torch.Tensor | None = None,
) -> None:
    """Attention of a plan's queries; arguments as `prefill_attention` has them.

    Effects: writes out's rows of the plan's queries.
    """
    q = _with_whole_heads(q)
    sink_heads: tuple[int | None, int, int] = (None, 0, 0)
    if sink_q is not None:
        sink_q = _with_whole_heads(sink_q)
        sink_heads = (sink_q.data_ptr(), sink_q.stride(0), sink_q.stride(1))
    data, scales = kv.data, kv.scales
    assert data.dtype in _STORED and data.is_contiguous() and out.stride(1) == 1 and out.dtype == q.dtype, "as they were made"
    plan.attend(
        *(plan.address, DTYPES[q.dtype], q.data_ptr(), q.stride(0), q.stride(1), *sink_heads, _address(sink_logits)),
        *(data.data_ptr(), DTYPES[data.dtype] if scales is None else 0, _address(scales), kv.group),
        *(out.data_ptr(), out.stride(0), torch.get_num_threads()),
    )


def _with_whole_heads(q: torch.Tensor) -> torch.Tensor:
    return q if q.stride(2) == 1 else q.contiguous()


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@dataclass(frozen=True, slots=True)
class _Functions:
    check: Callable[..., None]
    attend: Callable[..., None]


@cache
def _functions(library: NativeLibrary) -> _Functions:
    return _Functions(
        library.function("triserve_attention_check", (_POINTER, _POINTER)),
        library.function(
            "triserve_attention",
            (_POINTER, _NUMBER, *_HEADS, *_HEADS, _POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER, _POINTER, _NUMBER, _NUMBER),
        ),
    )
