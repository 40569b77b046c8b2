"""Kernels of the draw."""

from __future__ import annotations

from compute_svc.kernels.draw.filters.triton_kernel import filter_kernel
from compute_svc.kernels.draw.triton_kernel import choose_kernel, scan_kernel
from tests.ahead_of_time.compiling import Case

_NUMBERS = {"seeds": "*i64", "positions": "*i64", "temperatures": "*fp64"}
_FILTERS = {"top_ks": "*i64", "top_ps": "*fp64"}
_SIZES = {"width": "i32", "row_stride": "i32", "work_stride": "i32", "spans": "i32"}
_DIVISIBLE = ("logits", "work", "row_stride", "work_stride", "width")


def _scan(dtype: str, *, greedy: bool, filters: bool = False) -> Case:
    absent = {**(dict.fromkeys(_NUMBERS) if greedy else {}), **({} if filters else dict.fromkeys((*_FILTERS, "masses")))}
    return Case(
        f"draw scan {dtype} {'greedy' if greedy else 'mixed'}{' filters' if filters else ''}",
        scan_kernel,
        {"logits": f"*{dtype}", **_NUMBERS, **_FILTERS, "work": "*i32", "masses": "*fp64", **_SIZES},
        {"GREEDY": greedy, **absent},
        divisible=_DIVISIBLE,
        num_warps=4,
    )


def _filter(spans: int) -> Case:
    names = {"logits": "*fp32", "temperatures": "*fp64", **_FILTERS, "work": "*i32", "masses": "*fp64", "head": "*i32", **_SIZES}
    return Case(
        f"draw filter {spans} spans", filter_kernel, names, {"SPANS": spans, "CHUNK": 128}, divisible=(*_DIVISIBLE, "head"), num_warps=8
    )


def _choose(spans: int, *, greedy: bool = False, min_p: bool = False, filters: bool = False) -> Case:
    absent: dict[str, int | None] = {"flags": None, **dict.fromkeys(_NUMBERS)} if greedy else {"bests": None}
    if not min_p:
        absent["min_ps"] = None
    if not filters:
        absent["limits"] = None
    if spans == 1:
        # As a launch takes a 1.
        absent["spans"] = 1
    return Case(
        f"draw choose {spans} spans {'greedy' if greedy else 'mixed'}{' min_p' if min_p else ''}{' filters' if filters else ''}",
        choose_kernel,
        {
            "logits": "*fp32",
            **_NUMBERS,
            "min_ps": "*fp64",
            "work": "*i32",
            "limits": "*i32",
            "tokens": "*i64",
            "flags": "*i64",
            "bests": "*fp32",
            **_SIZES,
        },
        {"GREEDY": greedy, "SPANS": spans, "TILE": min(spans, 8), "CHUNK": 32, **absent},
        divisible=_DIVISIBLE,
        num_warps=1 if greedy else 8,
    )


CASES = [
    _scan("fp32", greedy=True),
    _scan("fp32", greedy=False),
    _scan("bf16", greedy=False),
    _choose(32, greedy=True),
    _choose(1, min_p=True),
    _choose(16),
    _choose(32),
    _choose(32, min_p=True),
    _choose(64, min_p=True),
    _scan("fp32", greedy=False, filters=True),
    _filter(32),
    _filter(64),
    _choose(32, min_p=True, filters=True),
    _choose(64, min_p=True, filters=True),
]
