"""What attention costs a layer on a CPU: native kernels over pages beside torch's operations over gathered copies, in turns on the same KV.

Decode rows of 1, 16 and 64 requests over contexts of 128, 1,024 and 8,192 tokens, as far as their KV fits; prompts and chunks of prompts; on one
thread and on two; stores of float32, bfloat16 and int8 in groups of 64. Layers enough that their KV falls out of the caches, as a model's does.
Pages lie in order, as a pool gives them out at first, and for one context also anywhere. Times are medians of wall clock, and of CPU time where
there is one thread (other work on the machine does not count there). Writes a results file,
with the machine's load: with other work on it only ratios of CPU time mean something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.decode_attention import decode_attention, plan_decode
from compute_svc.kernels.native import NativeMode, native_library, use_native_kernels
from compute_svc.kernels.paged_kv.kv_codes import encode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from compute_svc.kernels.prefill_attention import plan_prefill, prefill_attention
from gateway.cli.hardware import describe_hardware

RESULTS = Path(__file__).parents[1] / "results" / "attention_speed.json"
PAGE, HEAD_DIM, GROUP = 16, 64, 64
SHAPES = {"SmolLM2-135M, 9 heads on 3": (9, 3), "16 heads on 4": (16, 4)}
STORES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8-g64": torch.int8}
# What caches hold, a few times; and what all layers may take together.
_COLD_BYTES, _MOST_BYTES = 96 << 20, 256 << 20


class Load(NamedTuple):
    """Requests of one length, each with so many new tokens; pages in order or anywhere."""

    requests: int
    context: int
    queries: int = 1
    scattered: bool = False


DECODES = [Load(requests, context) for requests in (1, 16, 64) for context in (128, 1024, 8192)]
SCATTERED = [Load(16, 1024, scattered=True)]
PROMPTS = [Load(1, 128, 128), Load(1, 1024, 1024), Load(1, 8192, 128)]


class Setting(NamedTuple):
    """KV of some layers, and a layer's call for each mode."""

    layers: list[KvLayer]
    read_bytes: int
    calls: dict[NativeMode, Callable[[KvLayer], None]]


def prepare(num_heads: int, num_kv_heads: int, store: str, load: Load) -> Setting | None:
    """None where the KV of one layer alone is too much."""
    pages_each = -(-load.context // PAGE)
    num_pages = load.requests * pages_each
    dtype = STORES[store]
    shape = (2 * num_kv_heads, num_pages, PAGE, HEAD_DIM)
    layer_bytes = 2 * num_kv_heads * num_pages * PAGE * (HEAD_DIM * dtype.itemsize + (2 if dtype == torch.int8 else 0))
    if layer_bytes > _MOST_BYTES:
        return None
    layers = [_layer(shape, dtype) for _ in range(max(1, min(4 if load.queries > 1 else 30, _COLD_BYTES // layer_bytes)))]
    order = torch.randperm(num_pages) if load.scattered else torch.arange(num_pages)
    table, lengths = order.view(load.requests, pages_each), [load.context] * load.requests
    spec = AttentionSpec(num_heads, num_kv_heads, HEAD_DIM, PAGE, num_pages, HEAD_DIM**-0.5, None, stored=dtype)
    queries = torch.randn((load.requests * load.queries, num_heads, HEAD_DIM))
    out = torch.empty((len(queries), num_heads * HEAD_DIM))
    starts = list(accumulate([load.queries] * load.requests, initial=0))
    calls: dict[NativeMode, Callable[[KvLayer], None]] = {}
    for mode in ("off", "required"):
        use_native_kernels(mode)
        calls[mode] = _call(table, lengths, starts, spec, queries, out, decoding=load.queries == 1)
    return Setting(layers, layer_bytes, calls)


def _layer(shape: tuple[int, ...], dtype: torch.dtype) -> KvLayer:
    numbers = torch.randn(shape)
    return KvLayer(*encode(numbers, GROUP, dtype), GROUP) if dtype == torch.int8 else KvLayer(numbers.to(dtype))


def _call(
    table: torch.Tensor, lengths: list[int], starts: list[int], spec: AttentionSpec, q: torch.Tensor, out: torch.Tensor, *, decoding: bool
) -> Callable[[KvLayer], None]:
    if decoding:
        decode = plan_decode(table, lengths, spec)
        return lambda kv: decode_attention(q, kv, decode, out)
    prefill = plan_prefill(table, lengths, starts, spec)
    return lambda kv: prefill_attention(q, kv, prefill, out)


def measure(setting: Setting, seconds: float) -> dict[NativeMode, tuple[float, float]]:
    """Medians of seconds of wall clock and of this thread's CPU time of a layer, modes in turns."""
    times: dict[NativeMode, list[tuple[float, float]]] = {mode: [] for mode in setting.calls}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["required"]) < 3:
        for mode, call in setting.calls.items():
            wall, own = time.perf_counter(), time.thread_time()
            for layer in setting.layers:
                call(layer)
            count = len(setting.layers)
            times[mode].append(((time.perf_counter() - wall) / count, (time.thread_time() - own) / count))
    # The first of each goes before, untimed.
    return {
        mode: (statistics.median(wall for wall, _ in found[1:]), statistics.median(own for _, own in found[1:]))
        for mode, found in times.items()
    }


def rows(seconds: float) -> Iterator[dict[str, Any]]:
    """Every shape, store and load: on one thread, and where a layer's KV is not large on two."""
    for name, (num_heads, num_kv_heads) in SHAPES.items():
        for store in STORES:
            loads = [*DECODES, *SCATTERED, *PROMPTS] if store == "float32" else [DECODES[1], DECODES[4], *SCATTERED, PROMPTS[0]]
            for load in loads:
                setting = prepare(num_heads, num_kv_heads, store, load)
                if setting is None:
                    continue
                for threads in (1, 2) if load.requests * load.context <= 1 << 14 else (1,):
                    torch.set_num_threads(threads)
                    yield _row(name, store, load, threads, setting.read_bytes, measure(setting, seconds))


def _row(name: str, store: str, load: Load, threads: int, read_bytes: int, found: dict[NativeMode, tuple[float, float]]) -> dict[str, Any]:
    (torch_wall, torch_own), (native_wall, native_own) = found["off"], found["required"]
    row: dict[str, Any] = {"shape": name, "store": store, **load._asdict(), "threads": threads}
    row |= {"torch_ms": _rounded(1e3 * torch_wall), "native_ms": _rounded(1e3 * native_wall), "faster": _rounded(torch_wall / native_wall)}
    if threads == 1:
        row |= {"torch_cpu_ms": _rounded(1e3 * torch_own), "native_cpu_ms": _rounded(1e3 * native_own)}
        row |= {"faster_by_cpu_time": _rounded(torch_own / native_own)}
    if load.queries == 1:
        row["native_gb_per_s"] = _rounded(read_bytes / (native_own if threads == 1 else native_wall) / 1e9)
    return row


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each row, at least")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    use_native_kernels("required")
    library = native_library()
    assert library is not None, "it is required"
    about = {"date": datetime.now(UTC).date().isoformat(), "hardware": describe_hardware(), "instruction_set": library.instruction_set}
    found: list[dict[str, Any]] = []
    with torch.inference_mode():
        for row in rows(arguments.seconds):
            print(json.dumps(row))
            found.append(row)
            # After each, so that a run that is stopped keeps what it has.
            load = [round(number, 1) for number in os.getloadavg()]
            arguments.output.write_text(json.dumps({**about, "torch": torch.__version__, "load": load, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
