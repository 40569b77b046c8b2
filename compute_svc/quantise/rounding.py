"""Round to nearest: a float matrix to codes with scales, calibration-free and deterministic."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from compute_svc.kernels.exact_products import divided
from compute_svc.quantise.nf4 import nearest_nf4
from compute_svc.quantise.scheme import WeightForm
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import NF4, Code, pack_codes

INT8_MAX = 127
FP8_MAX = 448.0
_INT4_MIN, _INT4_MAX = -8, 7
# Shares of the scale that sends a group's largest number to the end of the codes: smaller ones clip it and serve the others better.
_SHRINKS = tuple(1.08 - 0.04 * step for step in range(9))
# At a time: what a search reads again and again stays in a CPU's caches.
_CHUNK_NUMBERS = 1 << 17


def round_weight(weight: torch.Tensor, form: WeightForm, scale_dtype: torch.dtype) -> CodedWeight:
    """Codes of a matrix.

    Args:
        weight: [N, K] float32, finite.
        form: How to store it.
        scale_dtype: What scales are rounded to; codes are chosen for the rounded ones. Those of nf4 are float32.
    """
    if form.code == "nf4":
        return _round_nf4(weight, form)
    columns = weight.shape[1]
    grouped = _grouped(weight, form.group)
    scales = _scales(grouped, form, scale_dtype)
    codes = encode(grouped, scales, form).flatten(1)[:, :columns]
    return coded(codes, scales, form, columns)


def coded(codes: torch.Tensor, scales: torch.Tensor, form: WeightForm, columns: int) -> CodedWeight:
    """A stored weight of codes [N, K], int8 or float8, and scales [N, G], in integers or fp8."""
    code: Code = "fp8" if form.code == "fp8" else "int4" if form.code == "int4" else "int8"
    data = codes if code == "fp8" else pack_codes(codes, 4 if code == "int4" else 8)
    group = min(form.group, columns)
    return CodedWeight(code=code, data=data, num_columns=columns, group=group, scales=scales, activations=form.activations)


def scales_of(weight: torch.Tensor, form: WeightForm, scale_dtype: torch.dtype) -> torch.Tensor:
    """[N, G], the scales that `round_weight` chooses."""
    return _scales(_grouped(weight, form.group), form, scale_dtype)


def encode(grouped: torch.Tensor, scales: torch.Tensor, form: WeightForm) -> torch.Tensor:
    """Codes of numbers [N, G, group] under scales [N, G]: integers as int8, or float8; numbers of a scale of zero have the code zero."""
    if form.code == "fp8":
        return (grouped / _divisors(scales)[..., None]).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return _integers(grouped, scales, form).to(torch.int8)


def _integers(grouped: torch.Tensor, scales: torch.Tensor, form: WeightForm) -> torch.Tensor:
    low, high = (_INT4_MIN, _INT4_MAX) if form.code == "int4" else (-INT8_MAX, INT8_MAX)
    return (grouped / _divisors(scales)[..., None]).round_().clamp_(low, high)


def _scales(grouped: torch.Tensor, form: WeightForm, dtype: torch.dtype) -> torch.Tensor:
    if form.code == "int4":
        return torch.cat([_searched_scales(rows, form, dtype) for rows in _row_chunks(grouped)])
    largest = INT8_MAX if form.code == "int8" else FP8_MAX
    return divided(grouped.abs().amax(dim=-1), largest).to(dtype)


def _searched_scales(grouped: torch.Tensor, form: WeightForm, dtype: torch.dtype) -> torch.Tensor:
    """[N, G], of int4: the candidate with the least squared error; the first of equal ones.

    Codes reach from -8 to 7, so a candidate sends a group's largest number to -8, whatever its sign: scales may be negative.
    """
    low, high = grouped.amin(dim=-1), grouped.amax(dim=-1)
    extreme = torch.where(high > -low, high, low)
    best = torch.zeros_like(extreme)
    least = torch.full_like(extreme, torch.inf)
    for shrink in _SHRINKS:
        candidate = (extreme * (shrink / _INT4_MIN)).to(dtype)
        wide = candidate.float()
        error = _integers(grouped, candidate, form).mul_(wide[..., None]).sub_(grouped).square_().sum(dim=-1)
        better = error < least
        best, least = torch.where(better, wide, best), torch.where(better, error, least)
    return best.to(dtype)


def _round_nf4(weight: torch.Tensor, form: WeightForm) -> CodedWeight:
    grouped = _grouped(weight, form.group)
    absmax = grouped.abs().amax(dim=-1)
    codes = torch.cat([nearest_nf4(rows / _divisors(largest)[..., None]) for rows, largest in _pairs(grouped, absmax)])
    return CodedWeight(
        code="uint4",
        data=pack_codes(codes.flatten(1), 4),
        num_columns=weight.shape[1],
        group=form.group,
        scales=absmax,
        table=torch.tensor(NF4),
    )


def _pairs(grouped: torch.Tensor, absmax: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, _CHUNK_NUMBERS // grouped[0].numel())
    yield from zip(torch.split(grouped, rows), torch.split(absmax, rows), strict=True)


def _row_chunks(grouped: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(torch.split(grouped, max(1, _CHUNK_NUMBERS // grouped[0].numel())))


def _grouped(weight: torch.Tensor, group: int) -> torch.Tensor:
    """[N, G, group]; scale and codes of a row that is one group alone need no division of its width."""
    return weight[:, None] if group >= weight.shape[1] else weight.view(len(weight), -1, group)


def _divisors(scales: torch.Tensor) -> torch.Tensor:
    """Scales in float32, 1 for 0: what such a scale was chosen for is so small that its codes are zero then."""
    wide = scales.float()
    return torch.where(wide == 0, 1.0, wide)
