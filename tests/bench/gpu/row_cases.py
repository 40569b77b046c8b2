"""Kernels that work row by row: norms, activations, quantising, and placing heads; beside torch's own operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.place_heads import place_heads
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows, quantise_gated, quantise_rows, rms_norm_quantise
from compute_svc.kernels.rms_norm import rms_norm
from compute_svc.kv.kv_format import KV_FORMATS, KvFormat
from tests.bench.gpu.cases import Case, Prepared
from tests.bench.gpu.shapes import PAGE_SIZE_TOKENS, Sizes
from tests.bench.gpu.timing import num_sets

_EPS = 1e-5
# Beside numbers that are not rounded to int8: the largest of a row decides how coarse its codes are, and a product of two has a long tail.
_TOLERANCES = {"quantise": 2e-2, "quantise-inner": 2e-2, "norm+quantise": 2e-2, "silu*up+quantise": 8e-2}

Function = Callable[[torch.Tensor], torch.Tensor | QuantisedRows]
Exact = Callable[[torch.Tensor], torch.Tensor]


def row_cases(sizes: Sizes, device: torch.device) -> Iterator[Case]:
    """Every operation on every number of rows."""
    norm_weight = 1 + 0.1 * torch.randn(sizes.hidden, device=device)
    rounded_weight = norm_weight.bfloat16()
    norm = Norm(norm_weight.contiguous(), _EPS)
    hidden, inner = sizes.hidden, sizes.inner
    # Name, whose, width of a row, bytes read and written of a row, what runs and what it rounds.
    operations: tuple[tuple[str, str, int, int, Function, Exact], ...] = (
        ("rms_norm", "ours", hidden, 4 * hidden, lambda x: rms_norm(x, rounded_weight, _EPS), lambda x: _normed(x, rounded_weight)),
        (
            "rms_norm",
            "torch",
            hidden,
            4 * hidden,
            lambda x: F.rms_norm(x, (hidden,), rounded_weight, _EPS),
            lambda x: _normed(x, rounded_weight),
        ),
        ("quantise", "ours", hidden, 3 * hidden, quantise_rows, lambda x: x.float()),
        ("quantise-inner", "ours", inner, 3 * inner, quantise_rows, lambda x: x.float()),
        ("norm+quantise", "ours", hidden, 3 * hidden, lambda x: rms_norm_quantise(x, norm), lambda x: _normed(x, norm_weight)),
        ("silu*up+quantise", "ours", 2 * inner, 5 * inner, lambda x: quantise_gated(x, "silu"), _gated),
        ("silu*up", "ours", 2 * inner, 6 * inner, _gated_by_triton if device.type == "cuda" else _gated_by_torch, _gated),
        ("silu*up", "torch", 2 * inner, 6 * inner, _gated_by_torch, _gated),
    )
    for rows in sizes.rows:
        for name, who, width, num_bytes, run, exact in operations:
            prepare = _on_rows(rows, width, device, sizes.cold_bytes, run, exact)
            yield Case("rows", name, f"{rows}", who, rows * num_bytes, prepare, tolerance=_TOLERANCES.get(name, 1e-2))
        for name in ("bfloat16", "int8-g8", "int8-g64"):
            yield _place_heads(sizes, device, rows, KV_FORMATS[name])


def _on_rows(rows: int, width: int, device: torch.device, cold_bytes: int, run: Function, exact: Exact) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        first = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
        inputs = [first, *(first.clone() for _ in range(num_sets(2 * first.nbytes, cold_bytes) - 1))]
        results: list[torch.Tensor | QuantisedRows] = []

        def call(x: torch.Tensor) -> None:
            results[:] = [run(x)]

        return Prepared([partial(call, x) for x in inputs], lambda: _numbers(results[0]), lambda: exact(first))

    return prepare


def _numbers(rows: torch.Tensor | QuantisedRows) -> torch.Tensor:
    return rows if isinstance(rows, torch.Tensor) else rows.codes.float() * rows.scales


def _normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    numbers = x.double()
    return numbers * torch.rsqrt(numbers.square().mean(dim=-1, keepdim=True) + _EPS) * weight.double()


def _gated(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.double().chunk(2, dim=1)
    return F.silu(gate) * up


def _gated_by_triton(x: torch.Tensor) -> torch.Tensor:
    from compute_svc.kernels.gated_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    gate, up = x.tensor_split(2, dim=1)
    result: torch.Tensor = triton_kernel.gated(gate, up, "silu")
    return result


def _gated_by_torch(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.tensor_split(2, dim=1)
    return F.silu(gate) * up


def _place_heads(sizes: Sizes, device: torch.device, rows: int, kv_format: KvFormat) -> Case:
    heads, kv_heads, dim = sizes.heads, sizes.kv_heads, sizes.head_dim
    read = 2 * rows * (heads + 2 * kv_heads) * dim + 8 * rows * dim
    written = 2 * rows * heads * dim + rows * kv_format.bytes_per_token(1, kv_heads, dim)

    def prepare() -> Prepared:
        pages = -(-rows // PAGE_SIZE_TOKENS) + 1
        scale_shape = (2 * kv_heads, pages, PAGE_SIZE_TOKENS, 0 if kv_format.group is None else -(-dim // kv_format.group))
        layer = KvLayer(
            torch.zeros((2 * kv_heads, pages, PAGE_SIZE_TOKENS, dim), dtype=kv_format.dtype, device=device),
            None if kv_format.group is None else torch.zeros(scale_shape, dtype=torch.float16, device=device),
            kv_format.group or 0,
        )
        slots = torch.randperm(pages * PAGE_SIZE_TOKENS, device=device)[:rows]
        start = torch.randn(rows, heads + 2 * kv_heads, dim, dtype=torch.bfloat16, device=device)
        angles = torch.randn(rows, 1, dim // 2, device=device)
        cos, sin = torch.cat((angles.cos(), angles.cos()), dim=2), torch.cat((-angles.sin(), angles.sin()), dim=2)
        inputs = [start.clone() for _ in range(num_sets(start.nbytes, sizes.cold_bytes))]

        def result() -> torch.Tensor:
            stored = layer.read(slots // PAGE_SIZE_TOKENS, slots % PAGE_SIZE_TOKENS)
            return torch.cat((inputs[0][:, :heads].float(), stored.transpose(0, 1)), dim=1)

        calls = [partial(place_heads, x, layer, slots, cos, sin, num_heads=heads, rotary_dims=dim) for x in inputs]
        return Prepared(calls, result, lambda: _rotated(start, cos, sin, heads + kv_heads))

    return Case("rows", f"place_heads {kv_format.name}", f"{rows}", "ours", read + written, prepare)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_rotated: int) -> torch.Tensor:
    numbers = heads.float()
    first, second = numbers.chunk(2, dim=2)
    turned = numbers * cos + torch.cat((second, first), dim=2) * sin
    parts: Sequence[torch.Tensor] = (turned[:, :num_rotated], numbers[:, num_rotated:])
    return torch.cat(list(parts), dim=1)
