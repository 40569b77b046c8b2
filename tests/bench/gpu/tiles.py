"""python -m tests.bench.gpu.tiles: times cuts of the products with quantised weights on a GPU, beside those that their tables have.

What takes long is compiling: processes side by side do it before, each a part of the cuts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute_svc.kernels.fp8_linear import pack_fp8, quantise_rows_to_fp8
from compute_svc.kernels.group_linear import GroupedCodes, pack_groups
from compute_svc.kernels.group_linear.triton_kernel import group_linear
from compute_svc.kernels.int_linear.triton_kernel import Codes, Tiles, multiply, new_counters
from compute_svc.kernels.quantise_rows import quantise_rows
from compute_svc.kernels.row_linear import triton_kernel as row_kernel
from tests.bench.gpu.shapes import LLAMA_8B, TRIAL, Sizes
from tests.bench.gpu.timing import measure, num_sets

FORMATS = ("row-bf16", "row-w8a8", "w8a8", "fp8", "fp8-g128", "int4-g128", "int8-g128")
RESULTS = Path(__file__).parents[1] / "results" / "gpu_tiles.json"
# Rows, and cuts of so many: rows, outputs, inputs, warps, stages, programs.
_CUTS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: (
        (16, 64, 256, 4, 3, 264),
        (16, 64, 256, 4, 4, 396),
        (16, 64, 512, 4, 3, 264),
        (16, 64, 128, 4, 5, 528),
        (16, 128, 128, 4, 4, 264),
        (16, 128, 256, 8, 3, 264),
        (16, 32, 512, 4, 3, 264),
        (16, 16, 512, 2, 4, 528),
    ),
    64: (
        (64, 64, 256, 4, 3, 264),
        (64, 64, 128, 4, 3, 264),
        (64, 128, 128, 8, 3, 264),
        (64, 128, 128, 4, 4, 264),
        (64, 128, 256, 8, 3, 132),
    ),
    256: (
        (128, 64, 128, 4, 4, 264),
        (128, 128, 128, 8, 4, 132),
        (64, 128, 128, 4, 4, 264),
        (256, 64, 128, 4, 3, 132),
        (256, 128, 128, 8, 3, 132),
        (256, 64, 128, 8, 3, 132),
    ),
    2048: (
        (128, 128, 128, 8, 4, 132),
        # A quarter less is read from the second-level cache, and what a tile ends with is hidden by no second program.
        (256, 128, 128, 8, 3, 132),
        (256, 128, 128, 8, 4, 132),
        (256, 128, 64, 8, 4, 132),
        (128, 256, 128, 8, 3, 132),
        (128, 128, 128, 4, 4, 132),
        (256, 64, 128, 4, 4, 132),
        # Four warps for each program: none waits for the others' sums.
        (128, 64, 128, 4, 3, 264),
        (128, 64, 128, 4, 4, 264),
        (64, 128, 128, 4, 3, 264),
    ),
}
# Inputs are numbers of 16 bits with several codes each.
_GROUP_CUTS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: (
        (16, 64, 64, 4, 4, 264),
        (16, 64, 64, 4, 4, 528),
        (16, 64, 64, 4, 5, 396),
        (16, 32, 128, 4, 4, 528),
        (16, 64, 128, 4, 3, 396),
        (16, 64, 128, 4, 4, 264),
        (16, 128, 64, 8, 5, 264),
        (16, 64, 128, 4, 2, 396),
        (16, 128, 64, 4, 4, 264),
        (16, 128, 64, 8, 4, 264),
        (16, 128, 128, 8, 3, 264),
    ),
    64: (
        (64, 64, 64, 4, 3, 264),
        (64, 64, 64, 4, 3, 396),
        (64, 64, 32, 4, 4, 264),
        (32, 128, 64, 8, 3, 264),
        (32, 64, 64, 4, 3, 264),
        (64, 128, 64, 8, 4, 132),
        (64, 128, 32, 8, 4, 264),
        # Scales meet fewer sums: a longer block has as many products for each.
        (64, 128, 128, 8, 2, 132),
        # Rows are read from the second-level cache half as often.
        (64, 256, 16, 8, 5, 132),
    ),
    256: (
        (128, 128, 32, 8, 4, 132),
        (128, 64, 32, 4, 4, 264),
        (64, 128, 64, 4, 3, 132),
        (128, 128, 64, 8, 2, 132),
        (64, 64, 64, 4, 3, 264),
    ),
    2048: ((128, 128, 32, 8, 4, 132), (128, 128, 64, 8, 2, 132)),
}
# Of one row alone: outputs, bytes of a block, warps, stages, bytes ahead.
_ROW_CUTS = tuple(
    row_kernel.Tiles(*cut)
    for cut in (
        (4, 2048, 4, 4),
        (4, 2048, 4, 6),
        (8, 2048, 4, 2),
        (8, 2048, 4, 4),
        (8, 1024, 2, 4),
        (8, 4096, 8, 2),
        (8, 4096, 8, 3),
        (16, 2048, 8, 3),
        (16, 2048, 4, 2),
        (4, 4096, 8, 4),
        (8, 2048, 4, 3, 2048),
        (8, 2048, 4, 3, 4096),
        (4, 2048, 4, 4, 4096),
    )
)
# Alike for the others.
_PRODUCTS = ("o", "gate_up", "down")
Cut = Tiles | row_kernel.Tiles
Run = Callable[[Any, int], torch.Tensor]


class Job(NamedTuple):
    """A product, and the cuts to try; the first is the table's own."""

    name: str
    num_bytes: float
    operations: float
    copies: int
    cuts: tuple[Cut | None, ...]
    prepare: Callable[[], Run]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the best cuts, writes all; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.tiles", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rows", nargs="+", type=int, choices=list(_CUTS), default=list(_CUTS))
    parser.add_argument("--trial", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--compilers", type=int, default=12, help="processes that compile before")
    parser.add_argument("--compile", default="", help="K/N: compiles each N-th cut alone, from the K-th on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    device, sizes = torch.device(chosen.device), TRIAL if chosen.trial else LLAMA_8B
    if chosen.compile:
        part, parts = (int(number) for number in chosen.compile.split("/"))
        _compile(list(_jobs(sizes, device, chosen.format, chosen.rows)), part, parts)
        return 0
    told = [*(sys.argv[1:] if arguments is None else arguments), "--compile"]
    compilers = [
        subprocess.Popen([sys.executable, "-m", "tests.bench.gpu.tiles", *told, f"{part}/{chosen.compilers}"])
        for part in range(chosen.compilers)
    ]
    for compiler in compilers:
        compiler.wait()
    rows = [row for job in _jobs(sizes, device, chosen.format, chosen.rows) for row in _times(job, device)]
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _jobs(sizes: Sizes, device: torch.device, formats: Sequence[str], row_counts: Sequence[int]) -> Iterator[Job]:
    for weight_format in formats:
        for rows in row_counts:
            for product in _PRODUCTS:
                if product not in sizes.products:
                    continue
                outputs, inputs = sizes.products[product]
                is_grouped, is_row = _is_unpacked(weight_format), weight_format.startswith("row-")
                width = 2.0 if weight_format == "row-bf16" else 0.5 if weight_format.startswith("int4") else 1.0
                num_bytes = outputs * inputs * width + 2.0 * rows * (outputs + inputs)
                copies = num_sets(num_bytes, sizes.cold_bytes)
                if is_row and rows != 1:
                    continue
                tried = (Tiles(*cut) for cut in (_GROUP_CUTS if is_grouped else _CUTS)[rows])
                cuts: tuple[Cut | None, ...] = (None, *(_ROW_CUTS if is_row else tried))
                prepare = partial(_prepare, weight_format, (rows, outputs, inputs), copies, device)
                yield Job(f"{weight_format} {product} {rows}", num_bytes, 2.0 * rows * outputs * inputs, copies, cuts, prepare)


def _prepare(weight_format: str, shape: tuple[int, int, int], copies: int, device: torch.device) -> Run:
    rows, outputs, inputs = shape
    x = torch.randn(rows, inputs, device=device).bfloat16()
    if weight_format == "row-bf16":
        drawn = [torch.randn(outputs, inputs, device=device).mul_(inputs**-0.5).bfloat16() for _ in range(copies)]
        return lambda tiles, index: row_kernel.multiply(x, drawn[index], None, "none", None, None, tiles)
    codes = torch.randint(-8, 8, (outputs, inputs), dtype=torch.int8, device=device)
    scales = torch.rand(outputs, 1, device=device) * inputs**-0.5
    if _is_unpacked(weight_format):
        of_groups = scales.half().expand(-1, inputs // 128).contiguous()
        grouped = [pack_groups(codes, int(weight_format[3]), 128, of_groups) for _ in range(copies)]
        return lambda tiles, index: group_linear(x, grouped[index], "none", None, torch.bfloat16, tiles=_fitting(tiles, grouped[index]))
    if weight_format.startswith("fp8"):
        group = 128 if weight_format == "fp8-g128" else inputs
        quantised = quantise_rows_to_fp8(x, group if group < inputs else None)
        of_groups = scales.expand(-1, -(-inputs // group)).contiguous()
        packed = [pack_fp8(codes.float().to(torch.float8_e4m3fn), group, of_groups) for _ in range(copies)]
        weights = [Codes(one.data, group, one.scales, None, None, one.counters) for one in packed]
    else:
        quantised = quantise_rows(x)
        weights = [Codes(codes.clone(), inputs, scales, None, None, new_counters(device)) for _ in range(copies)]
    if weight_format == "row-w8a8":
        return lambda tiles, index: row_kernel.multiply_codes(
            quantised, weights[index].data, scales, None, "none", None, torch.bfloat16, tiles
        )
    return lambda tiles, index: multiply(quantised, weights[index], "none", None, torch.bfloat16, tiles=tiles)


def _is_unpacked(weight_format: str) -> bool:
    """Whether codes become numbers in registers."""
    return weight_format.startswith("int") and "-g" in weight_format


def _fitting(tiles: Tiles | None, weight: GroupedCodes) -> Tiles | None:
    return None if tiles is None else tiles._replace(k=min(tiles.k, weight.block))


def _compile(jobs: Sequence[Job], part: int, parts: int) -> None:
    """Runs each `parts`-th cut once, so that it is in Triton's cache."""
    number = 0
    for job in jobs:
        mine = [cut for index, cut in enumerate(job.cuts, start=number) if index % parts == part]
        number += len(job.cuts)
        if mine:
            run = job._replace(copies=1).prepare()
            for cut in mine:
                _run(partial(run, cut, 0))


def _times(job: Job, device: torch.device) -> Iterator[dict[str, Any]]:
    run = job.prepare()
    wanted = run(None, 0)
    found: list[dict[str, Any]] = []
    for cut in job.cuts:
        got = _run(partial(run, cut, 0))
        if got is None:
            continue
        error = float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())
        timed = measure([partial(run, cut, index) for index in range(job.copies)], device, budget_s=0.02)
        rate = {"gb_per_s": round(job.num_bytes / timed.seconds / 1e9, 1), "tera_per_s": round(job.operations / timed.seconds / 1e12, 2)}
        found.append(
            {"job": job.name, "cut": None if cut is None else list(cut), "us": round(timed.seconds * 1e6, 2), **rate, "error": error}
        )
    table = found[0]
    print(f"{job.name}: the table's {table['us']} us, {table['gb_per_s']} GB/s, {table['tera_per_s']} T/s")
    for row in sorted(found, key=lambda row: row["us"])[:3]:
        print(f"    {row['us']} us {row['cut']} error {row['error']:.1e}", flush=True)
    yield from found


def _run(call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    """None if the device has not what it takes."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever the compiler says, the next cut is tried
        print(f"    {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return None


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
