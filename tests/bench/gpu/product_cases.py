"""Matrix products with weights of every format, beside torch's own products of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Literal

import torch
import torch.nn.functional as F

from compute_svc.kernels.int_linear import int_linear
from compute_svc.kernels.linear import LinearWeight, linear, pack_linear, pack_stored
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import NF4, pack_codes
from tests.bench.gpu.cases import Case, Prepared
from tests.bench.gpu.shapes import Sizes
from tests.bench.gpu.timing import num_sets

Format = Literal["bf16", "w8a8", "int4-g128", "fp8", "fp8-g128", "nf4-g64"]
_BITS: dict[Format, int] = {"bf16": 16, "w8a8": 8, "int4-g128": 4, "fp8": 8, "fp8-g128": 8, "nf4-g64": 4}
_INT4_GROUP = 128
_FP8_GROUP = 128
_NF4_GROUP = 64
# Beside the weight's own numbers: none is rounded, rows are rounded to int8 in groups, rows are rounded to fp8.
_TOLERANCES: dict[Format, float] = {"bf16": 1e-2, "w8a8": 1e-2, "int4-g128": 2e-2, "fp8": 5e-2, "fp8-g128": 5e-2, "nf4-g64": 2e-2}
# The head stays in bfloat16, as checkpoints have it.
_ONLY_BF16 = ("head",)


class Weights:
    """A weight in one format, as often as is needed to find no cache; made when it is first asked for.

    Args:
        weight_format: What it is stored as.
        shape: Outputs and inputs.
        device: Where.
        cold_bytes: See `Sizes`.
    """

    def __init__(self, weight_format: Format, shape: tuple[int, int], device: torch.device, cold_bytes: int) -> None:
        self.format = weight_format
        self.shape = shape
        self.device = device
        self._cold_bytes = cold_bytes

    @property
    def num_bytes(self) -> float:
        """Of its numbers and scales."""
        outputs, inputs = self.shape
        scales = {"bf16": 0, "w8a8": 4 * outputs, "fp8": 4 * outputs, "int4-g128": 2 * outputs * -(-inputs // _INT4_GROUP)}
        scales |= {"fp8-g128": 4 * outputs * -(-inputs // _FP8_GROUP), "nf4-g64": 4 * outputs * -(-inputs // _NF4_GROUP)}
        return outputs * inputs * _BITS[self.format] / 8 + scales[self.format]

    @property
    def copies(self) -> int:
        """How many take turns."""
        return num_sets(self.num_bytes, self._cold_bytes)

    @cached_property
    def codes(self) -> torch.Tensor:
        """[N, K]: bfloat16, float8, or integers as int8."""
        outputs, inputs = self.shape
        if self.format in ("bf16", "fp8", "fp8-g128"):
            drawn = torch.randn(outputs, inputs, device=self.device, dtype=torch.bfloat16)
            return drawn.mul_(inputs**-0.5) if self.format == "bf16" else drawn.to(torch.float8_e4m3fn)
        low, high = (-127, 128) if self.format == "w8a8" else (0, 16) if self.format == "nf4-g64" else (-8, 8)
        return torch.randint(low, high, self.shape, dtype=torch.int8, device=self.device)

    @cached_property
    def scales(self) -> torch.Tensor:
        """[N, G] float32; numbers keep the size of what they multiply."""
        outputs, inputs = self.shape
        groups = -(-inputs // self._group)
        spread = {"bf16": 1.0, "w8a8": 73.0, "fp8": 1.0, "fp8-g128": 1.0, "int4-g128": 4.6, "nf4-g64": 0.5}[self.format]
        return (torch.rand(outputs, groups, device=self.device) + 0.5).mul_(inputs**-0.5 / spread).bfloat16().float()

    @property
    def _group(self) -> int:
        """Inputs that share a scale."""
        groups = {"int4-g128": _INT4_GROUP, "fp8-g128": _FP8_GROUP, "nf4-g64": _NF4_GROUP}
        return min(groups.get(self.format, self.shape[1]), self.shape[1])

    @cached_property
    def packed(self) -> list[LinearWeight]:
        """As the engine has it."""
        return [self._pack() for _ in range(self.copies)]

    def _pack(self) -> LinearWeight:
        if self.format == "bf16":
            return pack_linear(self.codes.clone())
        data = self.codes.clone() if self.format.startswith("fp8") else pack_codes(self.codes, _BITS[self.format])
        weight = CodedWeight(
            code={"w8a8": "int8", "int4-g128": "int4", "fp8": "fp8", "fp8-g128": "fp8", "nf4-g64": "uint4"}[self.format],  # type: ignore[arg-type]
            data=data,
            num_columns=self.shape[1],
            group=self._group,
            scales=self.scales,
            table=torch.tensor(NF4, device=self.device) if self.format == "nf4-g64" else None,
            activations={"w8a8": "int8", "fp8": "fp8", "fp8-g128": "fp8"}.get(self.format, "float"),  # type: ignore[arg-type]
        )
        return pack_stored(weight, None, torch.bfloat16, "auto")

    def dense(self, rows: slice) -> torch.Tensor:
        """[n, K] float32: some outputs' numbers."""
        numbers = self.codes[rows].float()
        if self.format == "nf4-g64":
            numbers = torch.tensor(NF4, device=self.device)[numbers.long()]
        if self.format == "bf16":
            return numbers
        scales = self.scales[rows]
        return numbers * scales.repeat_interleave(-(-self.shape[1] // scales.shape[1]), dim=1)[:, : self.shape[1]]


def product_cases(
    sizes: Sizes, device: torch.device, formats: tuple[Format, ...] = ("bf16", "w8a8", "int4-g128", "fp8", "fp8-g128", "nf4-g64")
) -> Iterator[Case]:
    """Every weight in every format at every number of rows."""
    for weight_format in formats:
        for name, shape in sizes.products.items():
            if weight_format != "bf16" and name in _ONLY_BF16:
                continue
            weights = Weights(weight_format, shape, device, sizes.cold_bytes)
            for rows in sizes.product_rows:
                for who, prepare in _contenders(weights, rows):
                    kind = {"w8a8": "int8", "fp8": "fp8", "fp8-g128": "fp8"}.get(weight_format, "bf16")
                    num_bytes = weights.num_bytes + 2 * rows * sum(shape)
                    operations = 2.0 * rows * shape[0] * shape[1]
                    tolerance = _TOLERANCES[weight_format]
                    yield Case("products", f"{weight_format} {name}", f"{rows}", who, num_bytes, prepare, operations, kind, tolerance)


def _contenders(weights: Weights, rows: int) -> Iterator[tuple[str, Callable[[], Prepared]]]:
    yield "ours", lambda: _ours(weights, rows)
    if weights.format == "bf16":
        yield "torch", lambda: _against(weights, rows, _torch_bf16)
        if weights.device.type == "cuda":
            # What it costs that bits do not depend on the number of rows.
            yield "one order", lambda: _against(weights, rows, _one_order)
    elif weights.format == "w8a8":
        # Rows that are rounded already, as behind a norm or an activation that rounds them.
        yield "alone", lambda: _ours_alone(weights, rows)
        # It takes more than 16 rows.
        if rows > 16:
            yield "_int_mm", lambda: _against(weights, rows, _torch_int8)
    elif weights.device.type == "cuda" and weights.format == "int4-g128":
        yield "int4pack", lambda: _against(weights, rows, _torch_int4)
    elif weights.device.type == "cuda" and weights.format == "fp8":
        yield "_scaled_mm", lambda: _against(weights, rows, _torch_fp8)
        # Sums leave the matrix unit every 128 inputs: torch's way of that, and that of our kernel, which few rows and one order of sums have.
        yield "_scaled_mm, float32 sums", lambda: _against(weights, rows, partial(_torch_fp8, use_fast_accum=False))
        yield "kernel", lambda: _against(weights, rows, _triton_fp8)


Run = Callable[[torch.Tensor], torch.Tensor]


def _ours(weights: Weights, rows: int) -> Prepared:
    return _prepared(weights, rows, [partial(linear, weight=weight) for weight in weights.packed], _note(weights))


def _ours_alone(weights: Weights, rows: int) -> Prepared:
    quantised: list[object] = []

    def run(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        if weight.ints is None:
            raise NotImplementedError(f"a weight that is packed as {weight.layout} takes no rounded rows")
        if not quantised:
            quantised.append(quantise_rows(x))
        return int_linear(quantised[0], weight.ints, dtype=x.dtype)  # type: ignore[arg-type]

    return _prepared(weights, rows, [partial(run, weight=weight) for weight in weights.packed], _note(weights))


def _note(weights: Weights) -> str:
    layout = weights.packed[0].layout
    return f"multiplied as {weights.packed[0].data.dtype} in layout {layout}".replace("torch.", "")


def _against(weights: Weights, rows: int, make: Callable[[Weights], Run]) -> Prepared:
    return _prepared(weights, rows, [make(weights) for _ in range(weights.copies)], "")


def _torch_bf16(weights: Weights) -> Run:
    data = weights.codes.clone()
    return lambda x: F.linear(x, data)


def _one_order(weights: Weights) -> Run:
    from compute_svc.kernels.linear import triton_kernel  # noqa: PLC0415 - the interpreter is chosen before Triton is imported

    data = weights.codes.clone()
    return lambda x: triton_kernel.multiply(x, data, None)


def _torch_int8(weights: Weights) -> Run:
    """The product alone, of rows that are rounded already; without scaling what comes out."""
    data = weights.codes.clone()
    kept: list[torch.Tensor] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        if not kept:
            kept.extend(quantise_rows(x))
        return torch._int_mm(kept[0], data.t())

    return run


def _torch_int4(weights: Weights) -> Run:
    unsigned = (weights.codes + 8).to(torch.uint8)
    packed = torch._convert_weight_to_int4pack((unsigned[:, ::2] << 4) | unsigned[:, 1::2], 8)
    scales = weights.scales.t().bfloat16()
    both = torch.stack((scales, torch.zeros_like(scales)), dim=2).contiguous()
    return lambda x: torch._weight_int4pack_mm(x, packed, _INT4_GROUP, both)


def _triton_fp8(weights: Weights) -> Run:
    from compute_svc.kernels.fp8_linear import pack_fp8, quantise_rows_to_fp8  # noqa: PLC0415 - the interpreter is chosen before Triton is
    from compute_svc.kernels.int_linear.triton_kernel import Codes, multiply  # noqa: PLC0415 - imported

    packed = pack_fp8(weights.codes.clone(), weights.shape[1], weights.scales)
    codes = Codes(packed.data, packed.group, packed.scales, None, None, packed.counters)
    return lambda x: multiply(quantise_rows_to_fp8(x), codes, "none", None, x.dtype)


def _torch_fp8(weights: Weights, *, use_fast_accum: bool = True) -> Run:
    """The product alone, of rows that are rounded already."""
    data = weights.codes.clone()
    columns = weights.scales.view(1, -1)
    kept: list[torch.Tensor] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        if not kept:
            scale = x.float().abs().amax(dim=1, keepdim=True) / 448.0
            kept.extend(((x.float() / scale).to(torch.float8_e4m3fn), scale))
        return torch._scaled_mm(
            kept[0], data.t(), scale_a=kept[1], scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=use_fast_accum
        )

    return run


def _prepared(weights: Weights, rows: int, runs: list[Run], note: str) -> Prepared:
    x = torch.randn(rows, weights.shape[1], dtype=torch.bfloat16, device=weights.device)
    results: list[torch.Tensor] = []

    def call(run: Run) -> None:
        results[:] = [run(x)]

    def result() -> torch.Tensor:
        found = results[0]
        return found if found.dtype != torch.int32 else found.float() * quantise_rows(x).scales * weights.scales[:, 0]

    def reference() -> torch.Tensor:
        numbers = x.float()
        if weights.format == "w8a8":
            codes, scales = quantise_rows(x)
            numbers = codes.float() * scales
        step = 1 << 14
        return torch.cat([numbers @ weights.dense(slice(first, first + step)).t() for first in range(0, weights.shape[0], step)], dim=1)

    return Prepared([partial(call, run) for run in runs], result, reference, note)
