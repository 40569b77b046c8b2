"""Which kernels a decode step of the engine runs and how long each takes: JSON, and a picture for each size of the batch.

`python -m tests.bench.gpu.step_trace`: steps are timed without the profiler first. Then some are recorded by torch's profiler, and the device's
time is told by kernel and by part; what is left of a step is when the device waits. On a CPU, where there are no kernels, torch's operations are
told, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench.engine.engine_runner import EngineRunner
from tests.bench.engine.step_picture import drawn
from tests.bench.gpu.device_checks import random_tokens
from tests.bench.gpu.random_model import FORMS, SHAPES, RandomWeights, build_random
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "gpu_step_profile.json"
WAITING = "the device waits"
# The first that is found in a kernel's name says whose part it is.
_PARTS = {
    "attention": r"^_?attend|decode_kernel|plan_kernel|prefill|sum_splits|flash|fmha|attention|bmm",
    "products": r"nvjet|mkldnn|gemm|gemv|cutlass|splitk|int_linear|group_linear|int4|fp8_linear|linear_kernel|scaled_mm|addmm|aten::(mm|linear)",
    "rotary and KV write": r"place_heads|rotary|kv_write",
    "norms, activations": r"norm|quantise|gate_kernel|silu",
    "draw": r"argmax|gumbel|philox|draw|topk|sort|softmax|exponential|log",
    "copies": r"memcpy|memset|copy|cat|index|gather|scatter|fill",
    "other": r"",
}
_MOST_KERNELS = 40
_WARM_UP_STEPS = 4


def part_of(kernel: str) -> str:
    """Whose time a kernel's is."""
    return next(part for part, pattern in _PARTS.items() if re.search(pattern, kernel, re.IGNORECASE))


def trace(runner: EngineRunner, prompts: torch.Tensor, steps: int, *, is_cuda: bool) -> dict[str, Any]:
    """Milliseconds a step, by kernel and by part."""
    # The first run takes the prompts in, and captures graphs if there are any.
    runner.decode(prompts, _WARM_UP_STEPS, steps)
    step_ms = 1e3 * runner.decode(prompts, _WARM_UP_STEPS, steps) / steps
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]):
        pass  # What the first start of the profiler costs is not a step's.
    recorder = profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU])
    recorded_ms = 1e3 * runner.decode(prompts, _WARM_UP_STEPS, steps, recorder) / steps
    kernels = []
    for event in recorder.key_averages():
        if is_cuda and event.device_type.name != "CUDA":
            continue
        micros = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        if micros > 0:
            kernels.append(
                {"name": event.key[:200], "part": part_of(event.key), "calls": event.count / steps, "us": round(micros / steps, 2)}
            )
    kernels.sort(key=lambda kernel: -kernel["us"])
    parts = {part: sum(kernel["us"] for kernel in kernels if kernel["part"] == part) / 1e3 for part in _PARTS}
    parts[WAITING] = max(0.0, step_ms - sum(parts.values()))
    total = sum(parts.values())
    return {
        "requests": len(prompts),
        "context_tokens": prompts.shape[1],
        "steps": steps,
        "step_ms": round(step_ms, 4),
        "step_recorded_ms": round(recorded_ms, 4),
        "launches": round(sum(kernel["calls"] for kernel in kernels), 1),
        "parts_ms": {part: round(value, 4) for part, value in parts.items()},
        "parts_percent": {part: round(100 * value / total, 1) for part, value in parts.items()},
        "kernels": kernels[:_MOST_KERNELS],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, writes and draws."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.step_trace", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="8b")
    parser.add_argument("--weights", choices=["as-is", *FORMS], default="as-is")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RESULTS, help="pictures lie beside it")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    model = build_random(RandomWeights(chosen.shape, device, FORMS.get(chosen.weights)), torch.bfloat16, device)
    longest, most = chosen.context_tokens + _WARM_UP_STEPS + chosen.steps + 4, max(chosen.requests)
    runner = EngineRunner.around(model, max_requests=most, max_tokens=longest, kv_tokens=most * longest, step_budget_tokens=4096)
    prompts = random_tokens(model, most, chosen.context_tokens, seed=5)
    sizes = [trace(runner, prompts[:size], chosen.steps, is_cuda=device.type == "cuda") for size in chosen.requests]
    document = {
        "what": "a decode step by kernel: microseconds of the device a step, by the profiler; steps timed without it",
        **describe_environment(device),
        "model": chosen.shape,
        "weight_format": chosen.weights,
        "kernels": model.kernels,
        "sizes": sizes,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    name = document["device"]["name"]
    for found in sizes:
        picture = drawn(found, f"{chosen.shape}, {name}")
        chosen.output.with_name(f"{chosen.output.stem}_{found['requests']}.svg").write_text(picture)
        print(f"{found['requests']} requests: {found['step_ms']} ms, {found['launches']} launches; {found['parts_ms']}")
        for kernel in found["kernels"][:12]:
            print(f"  {kernel['us']:>9.1f} us {kernel['calls']:>6.1f}x {kernel['name'][:90]}")


if __name__ == "__main__":
    main()
