"""What a device's memory and arithmetic give at most: measured with torch's own copy and products, beside the data sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch

from tests.bench.gpu.timing import measure

# Bytes per second of their memory, as their data sheets have it; the first name that is found in the device's.
_DATA_SHEETS = {
    "H200": 4.8e12,
    "H100 NVL": 3.9e12,
    "H100 PCIe": 2.0e12,
    "H100": 3.35e12,
    "A100-SXM4-80GB": 2.039e12,
    "A100": 1.555e12,
    "L40S": 0.864e12,
}


class Ceilings(NamedTuple):
    """Rates that nothing exceeds by much.

    Attributes:
        bytes_per_s: Read and written by a large copy.
        bf16: Floating-point operations per second of a large product on random numbers.
        int8: As bf16.
        fp8: As bf16.
        sheet_bytes_per_s: As the data sheet has it; None = not known.
    """

    bytes_per_s: float
    bf16: float
    int8: float
    fp8: float
    sheet_bytes_per_s: float | None

    def limit_s(self, num_bytes: float, operations: float = 0.0, kind: str = "bf16") -> float:
        """The least seconds for so many bytes, at the data sheet's rate where it is known, or for so many operations."""
        rate: float = getattr(self, kind)
        return max(num_bytes / (self.sheet_bytes_per_s or self.bytes_per_s), operations / rate)

    def described(self) -> dict[str, Any]:
        """For results files."""
        sheet = self.sheet_bytes_per_s
        return {
            "copy_gb_per_s": round(self.bytes_per_s / 1e9, 1),
            "bf16_tflop_per_s": round(self.bf16 / 1e12, 2),
            "int8_top_per_s": round(self.int8 / 1e12, 2),
            "fp8_tflop_per_s": round(self.fp8 / 1e12, 2),
            "data_sheet_gb_per_s": None if sheet is None else sheet / 1e9,
        }


def measure_ceilings(device: torch.device) -> Ceilings:
    """On a CPU small and quick, to have numbers at all. What the device cannot multiply counts as twice bf16."""
    is_cuda = device.type == "cuda"
    size, copied = (8192, 2 << 30) if is_cuda else (256, 1 << 22)
    seconds = measure([_copy(copied, device)], device).seconds
    operations = 2.0 * size**3
    bf16 = operations / measure([_bf16(size, device)], device).seconds
    rates = {name: _rate(make, size, device) or 2 * bf16 for name, make in (("int8", _int8), ("fp8", _fp8))}
    return Ceilings(2 * copied / seconds, bf16, rates["int8"], rates["fp8"], data_sheet(device))


def data_sheet(device: torch.device) -> float | None:
    """Bytes per second of the device's memory; None = not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_properties(device).name
    return next((rate for known, rate in _DATA_SHEETS.items() if known in name), None)


def tensor_bytes(part: object) -> int:
    """Of all tensors in a model's part; what several share counts once."""
    views: dict[int, dict[int, int]] = {}
    sizes: dict[int, int] = {}
    for tensor in _tensors(part):
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            memory, place = storage.data_ptr(), int(tensor.storage_offset())
            sizes[memory] = storage.nbytes()
        else:
            # One of oneDNN's, which does not tell where it lies.
            memory, place = id(tensor), 0
            sizes[memory] = tensor.numel() * tensor.element_size()
        views.setdefault(memory, {})[place] = tensor.numel() * tensor.element_size()
    return sum(min(sizes[memory], sum(parts.values())) for memory, parts in views.items())


def _tensors(part: object) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, (list, tuple)):
        for one in part:
            yield from _tensors(one)
    elif is_dataclass(part):
        for one in fields(part):
            yield from _tensors(getattr(part, one.name, None))


def _rate(make: Callable[[int, torch.device], Callable[[], object]], size: int, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    try:
        call = make(size, device)
        call()
        return 2.0 * size**3 / measure([call], device).seconds
    except RuntimeError:
        return None


def _copy(num_bytes: int, device: torch.device) -> Callable[[], object]:
    source = torch.randint(-128, 127, (num_bytes,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _bf16(size: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    out = a @ b
    return lambda: torch.mm(a, b, out=out)


def _int8(size: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2))
    return lambda: torch._int_mm(a, b.t())


def _fp8(size: int, device: torch.device) -> Callable[[], object]:
    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    rows, columns = torch.ones(size, 1, device=device), torch.ones(1, size, device=device)
    return lambda: torch._scaled_mm(a, b.t(), scale_a=rows, scale_b=columns, out_dtype=torch.bfloat16, use_fast_accum=True)
