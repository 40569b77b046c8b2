"""What KV formats are worth: how many requests the same memory holds, and what they cost in quality.

Admission: the real scheduler over the requests of the lengths file, as `tests.bench.scheduling.kv_memory` runs it, with as many pages as each format gets
out of one budget for the shape of SmolLM2-135M; requests wait as long as some remain, and the pool alone limits the batch. The limit that a
format cannot pass is what its bytes are less than bfloat16's.

Quality: SmolLM2-135M-Instruct in float32, over windows of a public-domain text (tests/quality), with its KV in every format; against its KV in float32,
the same windows: perplexity, mean KL divergence, and how often the likeliest token is the same. Of float8, a CPU computes the codes and no speed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compute_svc.kernels.native import use_native_kernels
from compute_svc.kv.kv_format import KV_FORMATS, KvFormat
from compute_svc.kv.page_store import KvPageStore
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from gateway.cli.hardware import describe_hardware
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, WorkloadConfig, make_workload, read_lengths
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.scheduling.kv_memory import VOCAB_SIZE, Case, Run
from tests.quality.windows import PREDICTED, TEXT, WINDOW_TOKENS, Closeness, compare, log_probabilities, read_windows

RESULTS = Path(__file__).parents[1] / "results" / "kv_formats.json"
BASE = "bfloat16"
EXACT = "float32"
PAGE_SIZE_TOKENS = 16
# Layers, key heads and their width.
SHAPE = (30, 3, 64)


class _Full(Run):
    """Counts the steps alone in which requests are still to come, so that the pool is full."""

    def _observe(self) -> None:
        if self._arrivals:
            super()._observe()


def admission(num_requests: int, budget_bytes: int) -> dict[str, Any]:
    """Of each format its size, and how many requests ran at once on average while others waited; and how often those of bfloat16."""
    planned = make_workload(WorkloadConfig(num_requests=num_requests, seed=0), read_lengths(BUNDLED_LENGTHS), vocab_size=VOCAB_SIZE)
    case = Case("pool is the bottleneck", False, num_requests, False)
    figures: dict[str, Any] = {}
    for name, format_ in KV_FORMATS.items():
        page_bytes = PAGE_SIZE_TOKENS * format_.bytes_per_token(*SHAPE)
        config = SchedulerConfig(
            page_size_tokens=PAGE_SIZE_TOKENS,
            num_pages=budget_bytes // page_bytes,
            max_model_len_tokens=2048,
            step_budget_tokens=2048,
            max_running_requests=num_requests,
            max_waiting_requests=2 * num_requests,
        )
        run = _Full(case, config, KvMemory, planned, queue=4)
        found = run.finish()
        figures[name] = {
            "bytes_per_token": page_bytes // PAGE_SIZE_TOKENS,
            "bytes_per_page": page_bytes,
            "pages": config.num_pages,
            "running_requests": found["running_requests"],
            "most_running_requests": max(run.tally.running),
            "steps": found["steps"],
            "preemptions": found["preemptions"],
        }
    base = figures[BASE]
    for one in figures.values():
        one["limit_of_bfloat16"] = round(base["bytes_per_token"] / one["bytes_per_token"], 3)
        one["admitted_of_bfloat16"] = round(one["running_requests"] / base["running_requests"], 3)
        print(one, flush=True)
    return figures


def _store(model: CausalLM, format_: KvFormat) -> KvPageStore:
    sizes = (
        model.config.num_layers,
        WINDOW_TOKENS // PAGE_SIZE_TOKENS,
        PAGE_SIZE_TOKENS,
        model.config.num_kv_heads,
        model.config.kv_head_dim,
    )
    return KvPageStore(*sizes, format_.dtype, model.device, group=format_.group)


def quality(limit: int | None) -> Iterator[dict[str, Any]]:
    """How near each format comes to KV in float32, told anew after every window: no more than one is in memory, and a run may be cut short."""
    # What torch's own operations compute is the same arithmetic for all; native attention reads no float8.
    use_native_kernels("off")
    folder = resolve_model(None, download_from_hub, os.environ).folder
    model = load_model(folder, dtype=torch.float32, device=torch.device("cpu"))
    windows = read_windows(TEXT, folder / "tokenizer.json", limit)
    stores = {name: _store(model, format_) for name, format_ in KV_FORMATS.items()}
    exact_losses: list[float] = []
    found: dict[str, list[Closeness]] = {name: [] for name in stores if name != EXACT}
    for window in windows:
        (exact,) = log_probabilities(model, window[None], stores[EXACT])
        exact_losses.append(-float(exact.gather(1, window[-PREDICTED:, None]).double().mean()))
        for name, parts in found.items():
            parts.append(compare(model, window[None], exact[None], stores[name]))
        yield {
            "model": folder.name,
            "text": TEXT.name,
            "windows": len(exact_losses),
            "window_tokens": WINDOW_TOKENS,
            "predictions": len(exact_losses) * PREDICTED,
            EXACT: {"perplexity": round(math.exp(statistics.mean(exact_losses)), 5)},
            "formats": {name: _mean(parts, exact_losses) for name, parts in found.items()},
        }


def _mean(parts: list[Closeness], exact_losses: list[float]) -> dict[str, float]:
    """Over windows of as many predictions each, with the standard error of what changes from window to window."""
    losses = [math.log(part.perplexity) for part in parts]
    changes = [100 * (own - exact) for own, exact in zip(losses, exact_losses, strict=True)]
    return {
        "perplexity": round(math.exp(statistics.mean(losses)), 5),
        "perplexity_change_percent": round(100 * math.expm1(statistics.mean(changes) / 100), 4),
        "standard_error_percent": round(statistics.stdev(changes) / math.sqrt(len(changes)), 4) if len(changes) > 1 else 0.0,
        "kl": float(f"{statistics.mean(part.kl for part in parts):.3g}"),
        "top_1": round(statistics.mean(part.top_1 for part in parts), 5),
    }


def main() -> None:
    """Measures both and writes the results file; a part that is left out stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=("admission", "quality"), default=["admission", "quality"])
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--budget-bytes", type=int, default=256 << 20)
    parser.add_argument("--windows", type=int, help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    document: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    about = {
        "triserve": version("triserve"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    document["what"] = "KV formats: requests that one memory budget holds, and closeness to KV in float32"
    if "admission" in arguments.parts:
        settings = {"requests": arguments.requests, "budget_bytes": arguments.budget_bytes, "lengths": BUNDLED_LENGTHS.name}
        document["admission"] = {**about, "settings": settings, "formats": admission(arguments.requests, arguments.budget_bytes)}
    if "quality" in arguments.parts:
        for figures in quality(arguments.windows):
            document["quality"] = {**about, **figures}
            _write(arguments.output, document)
            print(f"{figures['windows']} windows: {figures['formats']}", flush=True)
    _write(arguments.output, document)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
