"""python -m tests.bench.gpu.attention_tiles: times tiles of decode attention on a GPU, beside those that its table has."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compute_svc.kernels.decode_attention import triton_kernel, triton_plan
from compute_svc.kernels.decode_attention.triton_plan import TileShape
from compute_svc.kv.kv_format import KV_FORMATS, KvFormat
from tests.bench.gpu.attention_cases import decode_case
from tests.bench.gpu.cases import relative_error
from tests.bench.gpu.shapes import LLAMA_8B, TRIAL, Sizes
from tests.bench.gpu.timing import measure

RESULTS = Path(__file__).parents[1] / "results" / "gpu_attention_tiles.json"
# By bytes of a stored number: tokens, warps, stages, programs, resident.
_TILES: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    2: ((64, 4, 4, 2, 2), (64, 4, 2, 3, 3), (32, 4, 4, 3, 4), (128, 4, 2, 2, 2), (128, 8, 3, 1, 1), (64, 2, 3, 3, 4)),
    1: ((64, 4, 3, 2, 2), (64, 4, 5, 2, 2), (128, 4, 3, 2, 2), (128, 8, 3, 1, 1), (32, 2, 4, 4, 4), (64, 2, 4, 3, 3)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints and writes what every tile takes; returns 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.attention_tiles", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kv", nargs="+", choices=list(KV_FORMATS), default=["bfloat16", "int8-g8", "int8-g64"])
    parser.add_argument("--trial", action="store_true", help="small shapes, to see that everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    device, sizes = torch.device(chosen.device), TRIAL if chosen.trial else LLAMA_8B
    rows = [row for name in chosen.kv for load in sizes.decodes for row in _times(sizes, device, KV_FORMATS[name], name, load)]
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _times(sizes: Sizes, device: torch.device, kv_format: KvFormat, name: str, load: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """What the table's tile takes, and each of the others; one that the device has not room for is left out."""
    requests, length = load
    num_bytes = requests * length * kv_format.bytes_per_token(1, sizes.kv_heads, sizes.head_dim)
    for tile in (None, *(TileShape(*shape) for shape in _TILES[kv_format.dtype.itemsize])):
        with _using(tile, kv_format, sizes):
            ready = decode_case(sizes, device, kv_format, requests, length)()
            try:
                for call in ready.calls:
                    call()
            except Exception as error:  # noqa: BLE001 - whatever the compiler says, the next tile is tried
                print(f"    {tile}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                continue
            found = relative_error(ready.result(), ready.reference())
            timed = measure(ready.calls, device, budget_s=0.02)
        rate = num_bytes / timed.seconds / 1e9
        print(
            f"{name} {requests}x{length} {tile or 'the table'}: {timed.seconds * 1e6:.1f} us, {rate:.0f} GB/s, error {found:.1e}",
            flush=True,
        )
        shape = None if tile is None else [tile.tokens, tile.warps, tile.stages, tile.programs, tile.resident]
        yield {"kv": name, "requests": requests, "tokens": length, "tile": shape, "us": round(timed.seconds * 1e6, 2), "error": found}


@contextmanager
def _using(tile: TileShape | None, kv_format: KvFormat, sizes: Sizes) -> Iterator[None]:
    """The table has another tile within the block."""
    key = (kv_format.dtype.itemsize, max(triton_plan.padded(sizes.head_dim), 64))
    own = triton_plan._TILES[key]
    triton_plan._TILES[key] = tile or own
    triton_kernel.launch_constants.cache_clear()
    try:
        yield
    finally:
        triton_plan._TILES[key] = own
        triton_kernel.launch_constants.cache_clear()


if __name__ == "__main__":
    with torch.inference_mode():
        sys.exit(main())
