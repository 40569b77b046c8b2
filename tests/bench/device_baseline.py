"""The engine alone on one device, beside transformers on the same device with the same weights: checked, then measured. No service is needed.

Checked: logits against transformers, or where that is not installed against this engine on the CPU, on a small random model in float32 and on
the measured one; whether a request's bits depend on its neighbours, which is promised on a CPU and measured elsewhere; that no step
waits for the device. Measured, in turns: decode tokens/s by number of requests, prefill tokens/s by number and length of prompts.
Writes medians and spread to a results file.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from tests.bench.device_checks import EngineReference, Reference, check_invariance, check_logits, check_no_waiting, random_tokens
from tests.bench.engine_runner import EngineRunner
from tests.bench.random_model import SHAPES, RandomWeights, build_random
from tests.environment import describe_device, describe_environment

RESULTS = Path(__file__).parent / "results"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CPU = torch.device("cpu")
_WARM_UP_STEPS = 2


class Prompts(NamedTuple):
    """How many prompts of which length."""

    num_prompts: int
    length: int


class Runner(Protocol):
    """Who is measured."""

    name: str

    def decode(self, prompts: torch.Tensor, warm_up: int, steps: int) -> float:
        """Seconds for `steps` tokens of each of [requests, tokens] prompts."""
        ...

    def prefill(self, prompts: torch.Tensor) -> float:
        """Seconds from [requests, tokens] prompts to a token of each."""
        ...

    def forget(self) -> None:
        """Frees what it keeps between calls."""
        ...


def main(arguments: Sequence[str] | None = None) -> Path:
    """Checks, measures and writes; returns the results file."""
    chosen = _parse(arguments)
    device, dtype = torch.device(chosen.device), _DTYPES[chosen.dtype]
    has_transformers = find_spec("transformers") is not None and not chosen.alone
    checks: dict[str, Any] = {"float32_tiny": _check_tiny(device, has_transformers)}
    weights: Path | RandomWeights = chosen.model or RandomWeights(chosen.shape, device)
    model = load_model(weights, dtype=dtype, device=device) if isinstance(weights, Path) else build_random(weights, dtype, device)
    rival = _rival(weights, dtype, device) if has_transformers else None
    if rival is not None:
        checks["logits"] = check_logits(model, rival)
    checks["invariance"] = check_invariance(model, promised=device.type == "cpu")
    checks["step_without_waiting"] = check_no_waiting(model)
    print(json.dumps(checks, indent=1), flush=True)
    engine = _engine(model, chosen)
    runners: list[Runner] = [engine] if rival is None else [engine, rival]
    name = weights.name if isinstance(weights, Path) else chosen.shape
    document = {
        "what": "tokens per second of the engine alone and of transformers, same device, weights and prompts, in turns",
        **describe_environment(device),
        "model": name,
        "weights": "a checkpoint's" if isinstance(weights, Path) else "random",
        "dtype": chosen.dtype,
        "rounds": chosen.rounds,
        "step_budget_tokens": engine.step_budget_tokens,
        "checks": checks,
        "decode": _measure_decode(runners, model, chosen),
        "prefill": _measure_prefill(runners, model, chosen),
    }
    output: Path = chosen.output or RESULTS / f"device_baseline_{_slug(describe_device(device)['name'])}_{_slug(name)}_{chosen.dtype}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    print(output)
    return output


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device_baseline", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="a checkpoint's folder")
    model.add_argument("--shape", choices=list(SHAPES), default="tiny", help="random weights of this size, made on the device")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 64, 256], help="requests that decode at once")
    parser.add_argument("--context", type=int, default=512, help="tokens before the first that is decoded")
    parser.add_argument("--steps", type=int, default=8, help="decode steps of a round")
    parser.add_argument("--prefill", type=_prompts, nargs="+", default=[Prompts(1, 2048), Prompts(8, 512)], metavar="COUNTxLENGTH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help="without transformers, as where it is not installed")
    parser.add_argument("--output", type=Path, help="the results file; default: named after device, model and dtype")
    chosen = parser.parse_args(arguments)
    for name in ("context", "steps", "rounds"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}, it must be at least 1")
    if min(chosen.sizes) < 1:
        parser.error(f"--sizes has {min(chosen.sizes)}, it must be at least 1")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device is {chosen.device}, and torch {torch.__version__} finds no CUDA device")
    return chosen


def _prompts(text: str) -> Prompts:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not COUNTxLENGTH, like 8x512")
    return Prompts(int(found[1]), int(found[2]))


def _engine(model: CausalLM, chosen: argparse.Namespace) -> EngineRunner:
    """An engine that takes every workload, each prefill in one step."""
    decoded = Prompts(max(chosen.sizes), chosen.context + _WARM_UP_STEPS + chosen.steps + 2)
    workloads = [decoded, *(Prompts(prompts.num_prompts, prompts.length + 1) for prompts in chosen.prefill)]
    return EngineRunner.around(
        model,
        max_requests=max(one.num_prompts for one in workloads),
        max_tokens=max(one.length for one in workloads),
        kv_tokens=max(one.num_prompts * one.length for one in workloads),
        step_budget_tokens=max(prompts.num_prompts * prompts.length for prompts in chosen.prefill),
    )


def _check_tiny(device: torch.device, has_transformers: bool) -> dict[str, Any]:
    """A small model in float32, its weights drawn on the CPU so that they are the same on every device."""
    weights = RandomWeights("tiny", _CPU)
    model = build_random(weights, torch.float32, device)
    reference: Reference = _rival(weights, torch.float32, device) if has_transformers else _on_cpu(weights)
    beside = "transformers" if has_transformers else "this engine on the CPU"
    return {
        "beside": beside,
        "logits": check_logits(model, reference),
        "invariance": check_invariance(model, promised=device.type == "cpu"),
    }


def _on_cpu(weights: RandomWeights) -> EngineReference:
    return EngineReference(build_random(weights, torch.float32, _CPU))


def _rival(weights: Path | RandomWeights, dtype: torch.dtype, device: torch.device) -> Any:
    from tests.bench import transformers_rival  # noqa: PLC0415 - it imports transformers, which may not be there

    return transformers_rival.TransformersRival(transformers_rival.load_rival(weights, dtype, device))


def _measure_decode(runners: Sequence[Runner], model: CausalLM, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    measured = []
    prompts = random_tokens(model, max(chosen.sizes), chosen.context, seed=3)
    for size in chosen.sizes:
        rounds = [prompts[:size]] * chosen.rounds
        tokens = size * chosen.steps
        figures = _in_turns(runners, tokens, rounds, lambda runner, prompts: runner.decode(prompts, _WARM_UP_STEPS, chosen.steps))
        measured.append({"requests": size, "context_tokens": chosen.context, "tokens_per_round": tokens, **figures})
        print(json.dumps(measured[-1]), flush=True)
    return measured


def _measure_prefill(runners: Sequence[Runner], model: CausalLM, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    measured = []
    for index, prompts in enumerate(chosen.prefill):
        # New prompts for every round: the engine would find old ones in its cache. One round more warms up.
        warm_up, *rounds = [random_tokens(model, *prompts, seed=1000 * (index + 1) + number) for number in range(chosen.rounds + 1)]
        for runner in runners:
            runner.prefill(warm_up)
        figures = _in_turns(runners, prompts.num_prompts * prompts.length, rounds, lambda runner, prompts: runner.prefill(prompts))
        measured.append({"prompts": prompts.num_prompts, "prompt_tokens": prompts.length, **figures})
        print(json.dumps(measured[-1]), flush=True)
    return measured


def _in_turns(
    runners: Sequence[Runner], tokens: int, rounds: Sequence[torch.Tensor], run: Callable[[Runner, torch.Tensor], float]
) -> dict[str, Any]:
    """Tokens per second by runner: median, least and most of some rounds, each with its prompts."""
    rates: dict[str, list[float]] = {runner.name: [] for runner in runners}
    for prompts in rounds:
        for runner in runners:
            rates[runner.name].append(tokens / run(runner, prompts))
    for runner in runners:
        runner.forget()
    gc.collect()
    return {
        name: {"tokens_per_s": {"median": round(statistics.median(one), 1), "min": round(min(one), 1), "max": round(max(one), 1)}}
        for name, one in rates.items()
    }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_")


if __name__ == "__main__":
    main()
