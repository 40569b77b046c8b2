"""Speed of products with weights of integers and of floats, beside oneDNN's: `python -m tests.bench.engine.int_products`.

The ways take turns in short runs, so that what else the machine does meets all of them alike; weights take turns too, so that they come from
memory and not from a cache. Both the median and the fastest tenth of the runs are kept: on a machine that others use, the second is nearer
to what the kernels need. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute_svc.kernels.cpu_features import InstructionSet, has_instruction_set, instruction_set, multiplies_bfloat16
from compute_svc.kernels.int_linear import int_linear, pack_ints
from compute_svc.kernels.linear import LinearWeight, linear, pack_linear
from compute_svc.kernels.linear.cpu import pack_onednn
from compute_svc.kernels.native import checked_library
from compute_svc.kernels.quantise_rows import quantise_rows
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "int_products.json"
# Inputs and outputs: SmolLM2-135M's products, and one of a larger model.
SHAPES = [(576, 576), (576, 1536), (1536, 576), (576, 49152), (1024, 4096)]
ROWS = [1, 2, 4, 16, 64, 512]
# Logits are of few rows: a prompt's last alone.
_LARGE_OUTPUTS, _ROWS_OF_LARGE = 16384, 64
# More than any cache of a core's own, and than this machine's share of the others.
_BYTES_IN_TURN = 96 << 20
_MOST_COPIES = 64
_SHORT_RUN_S = 1e-3
# For all ways at one size; large products get fewer rounds than asked for, but some.
_BUDGET_S = 4.0
_LEAST_ROUNDS = 3

Run = Callable[[int], object]


class Way(NamedTuple):
    """One way to multiply.

    Attributes:
        name: Of it.
        weight_bytes: Of one weight with its scales.
        run: Multiplies with the weight of that number.
    """

    name: str
    weight_bytes: int
    run: Run


def _onednn(inputs: int, outputs: int, x: torch.Tensor, copies: int, dtype: torch.dtype) -> Way:
    return _floats("onednn", [pack_onednn(torch.randn(outputs, inputs).to(dtype), None) for _ in range(copies)], x.to(dtype))


def _floats(name: str, weights: Sequence[LinearWeight], x: torch.Tensor) -> Way:
    full_name = f"{name} {x.dtype}".replace("torch.", "")
    return Way(full_name, weights[0].num_bytes, lambda number: linear(x, weights[number % len(weights)]))


def _panels(inputs: int, outputs: int, x: torch.Tensor, copies: int, dtype: torch.dtype) -> Way:
    """Our own products of floats; oneDNN's where those are not there."""
    weights = [pack_linear(torch.randn(outputs, inputs).to(dtype)) for _ in range(copies)]
    return _floats("ours" if weights[0].layout == "panels" else f"ours, {weights[0].layout}", weights, x.to(dtype))


def _onednn_int8(inputs: int, outputs: int, x: torch.Tensor, copies: int) -> Way:
    """Its product of unsigned and signed bytes alone, without quantising x and without the rows' scales."""
    codes = [torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8) for _ in range(copies)]
    packed = [torch.ops.onednn.qlinear_prepack(one, list(x.shape)) for one in codes]
    scales, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    given = (quantise_rows(x).codes.to(torch.int16) + 128).to(torch.uint8)

    def run(number: int) -> object:
        weight = packed[number % copies]
        return torch.ops.onednn.qlinear_pointwise(given, 1.0, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], "")

    return Way("onednn u8 x s8", inputs * outputs, run)


def _ours(inputs: int, outputs: int, x: torch.Tensor, copies: int, form: tuple[int, int | None], built_for: InstructionSet) -> Way:
    bits, group = form
    group = inputs if group is None else group
    low, high = (-127, 128) if bits == 8 else (-8, 8)
    codes = torch.randint(low, high, (outputs, inputs), dtype=torch.int8)
    # As checkpoints have them.
    scales = torch.rand(outputs, -(-inputs // group)).half()
    weights = [pack_ints(codes, bits, group, scales, library=checked_library(built_for)) for _ in range(copies)]
    rows = quantise_rows(x, group if group < inputs else None)
    name = f"int{bits} {'a row' if group == inputs else f'groups of {group}'} {built_for}"
    return Way(name, weights[0].num_bytes, lambda number: int_linear(rows, weights[number % copies]))


def _ways(inputs: int, outputs: int, num_rows: int) -> list[Way]:
    x = torch.randn(num_rows, inputs)
    copies = max(2, min(_MOST_COPIES, _BYTES_IN_TURN // (inputs * outputs)))
    ways = [_onednn(inputs, outputs, x, max(2, copies // 4), torch.float32)]
    if multiplies_bfloat16():
        ways.append(_onednn(inputs, outputs, x, max(2, copies // 2), torch.bfloat16))
    for dtype in (torch.float32, torch.bfloat16):
        ways.append(_panels(inputs, outputs, x, max(2, copies // dtype.itemsize), dtype))
    ways.append(_onednn_int8(inputs, outputs, x, copies))
    sets: list[InstructionSet] = [instruction_set()]
    if sets != ["avx2"] and has_instruction_set("avx2"):
        sets.append("avx2")
    forms = [(8, None), (8, 32), (4, 32)]
    return ways + [_ours(inputs, outputs, x, copies, form, built_for) for built_for in sets for form in forms]


def _measure(ways: list[Way], rounds: int) -> dict[str, list[float]]:
    """Seconds a product, by way, a number for each round."""
    lengths = []
    for way in ways:
        way.run(0)
        start = time.perf_counter()
        way.run(1)
        lengths.append(max(1, min(200, int(_SHORT_RUN_S / (time.perf_counter() - start)))))
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    number = 0
    end = time.perf_counter() + _BUDGET_S
    for done in range(rounds):
        if done >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        for way, length in zip(ways, lengths, strict=True):
            start = time.perf_counter()
            for turn in range(length):
                way.run(number + turn)
            seconds[way.name].append((time.perf_counter() - start) / length)
            number += length
    return seconds


def _measure_shape(inputs: int, outputs: int, num_rows: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    ways = _ways(inputs, outputs, num_rows)
    measured = []
    for way, seconds in zip(ways, _measure(ways, rounds).values(), strict=True):
        ordered = sorted(seconds)
        median, fast = ordered[len(ordered) // 2], ordered[len(ordered) // 10]
        measured.append(
            {
                "way": way.name,
                "inputs": inputs,
                "outputs": outputs,
                "rows": num_rows,
                "threads": threads,
                "median_us": round(median * 1e6, 1),
                "fast_us": round(fast * 1e6, 1),
                "fast_gb_per_s": round(way.weight_bytes / fast / 1e9, 1),
                "fast_gop_per_s": round(2 * num_rows * inputs * outputs / fast / 1e9, 1),
            }
        )
    return measured


def main() -> None:
    """Measures them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    products = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for inputs, outputs in SHAPES:
            most = _ROWS_OF_LARGE if outputs > _LARGE_OUTPUTS else max(arguments.rows)
            for num_rows in [rows for rows in arguments.rows if rows <= most]:
                measured = _measure_shape(inputs, outputs, num_rows, threads, arguments.rounds)
                products += measured
                for one in measured:
                    print(
                        f"{threads} threads, {num_rows:4d} x {inputs} x {outputs} {one['way']:32s} {one['fast_us']:9.1f} us "
                        f"({one['median_us']:9.1f} in the median) {one['fast_gb_per_s']:6.1f} GB/s {one['fast_gop_per_s']:8.1f} GOP/s",
                        flush=True,
                    )
    environment = {**describe_environment(torch.device("cpu")), "load_average": [round(load, 1) for load in os.getloadavg()]}
    arguments.results.write_text(json.dumps({"environment": environment, "products": products}, indent=1) + "\n")


if __name__ == "__main__":
    main()
