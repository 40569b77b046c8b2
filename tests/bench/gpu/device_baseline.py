"""The engine alone on one device, beside transformers on the same device with the same weights: checked, then measured. No service is needed.

Checked: logits against transformers, or where that is not installed against this engine on the CPU, on a small random model in float32 and on
the measured one; whether a request's bits depend on its neighbours, which is promised on a CPU and measured elsewhere; that no step
waits for the device; where weights are rounded, a small model's logits against the CPU's. Measured, in turns, for each KV format: decode tokens/s by
number of requests, prefill tokens/s by number and length of prompts. A decode step is held against its limit: the bytes of weights, head and KV,
each read once, over the data sheet's bandwidth, or where that is not known over that of a copy here; a prompt against the operations of its
products, at the rate of a large product here. Writes medians and spread to a results file.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from compute_svc.engine.engine import Engine
from compute_svc.kernels.backend import use_batch_invariance
from compute_svc.kernels.device_features import overlaps_launches
from compute_svc.kv.kv_format import KV_FORMATS, KvFormat
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from tests.bench.engine.engine_runner import EngineRunner
from tests.bench.gpu.ceilings import Ceilings, measure_ceilings, tensor_bytes
from tests.bench.gpu.device_checks import (
    ROUNDED_TOLERANCE,
    EngineReference,
    Reference,
    check_invariance,
    check_logits,
    check_no_waiting,
    random_tokens,
    whole_logits,
)
from tests.bench.gpu.random_model import FORMS, SHAPES, RandomWeights, build_random
from tests.environment import describe_device, describe_environment

RESULTS = Path(__file__).parents[1] / "results"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CPU = torch.device("cpu")
_WARM_UP_STEPS = 4


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
    form = FORMS.get(chosen.weights)
    use_batch_invariance(chosen.batch_invariant, device.type)
    if chosen.fetch_ahead:
        _fetch_ahead(chosen.fetch_ahead)
    checks: dict[str, Any] = {"float32_tiny": _check_tiny(device, has_transformers)}
    if form is not None:
        checks[f"{chosen.weights}_tiny"] = _check_rounded(RandomWeights("tiny", _CPU, form), dtype, device)
    weights: Path | RandomWeights = chosen.model or RandomWeights(chosen.shape, device, form)
    model = load_model(weights, dtype=dtype, device=device) if isinstance(weights, Path) else build_random(weights, dtype, device)
    rival = _rival(weights, dtype, device) if has_transformers else None
    if rival is not None:
        checks["logits"] = check_logits(model, rival)
    checks["invariance"] = check_invariance(model, promised=device.type == "cpu")
    checks["step_without_waiting"] = check_no_waiting(model)
    print(json.dumps(checks, indent=1), flush=True)
    ceilings = measure_ceilings(device)
    name = weights.name if isinstance(weights, Path) else chosen.shape
    document = {
        "what": "tokens per second of the engine alone and of transformers, same device, weights and prompts, in turns",
        **describe_environment(device),
        "model": name,
        "weights": "a checkpoint's" if isinstance(weights, Path) else "random",
        "dtype": chosen.dtype,
        "weight_format": chosen.weights,
        "kernels": model.kernels,
        "graphs": not chosen.no_graphs,
        "runs_ahead": not (chosen.no_graphs or chosen.no_run_ahead),
        "batch_invariant": chosen.batch_invariant,
        "fetch_ahead_bytes": chosen.fetch_ahead,
        "rounds": chosen.rounds,
        "steps": chosen.steps,
        "step_budget_tokens": _step_budget(chosen),
        "ceilings": ceilings.described(),
        "checks": checks,
        "decode": [],
        "prefill": [],
    }
    output: Path = chosen.output or RESULTS / f"device_baseline_{_slug(describe_device(device)['name'])}_{_slug(name)}_{chosen.dtype}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    for kv_name in chosen.kv:
        kv_format = KvFormat(dtype) if kv_name == "auto" else KV_FORMATS[kv_name]
        engine = _engine(model, chosen, kv_format)
        # It keeps keys and values in one format.
        runners: list[Runner] = [engine] if rival is None or kv_format.group is not None else [engine, rival]
        document["decode"] += _measure_decode(runners, model, chosen, kv_format, ceilings)
        document["prefill"] += _measure_prefill(runners, model, weights, chosen, kv_format, ceilings)
        del engine, runners
        gc.collect()
        # After each, so that a run that is stopped keeps what it has.
        output.write_text(json.dumps(document, indent=1) + "\n")
    print(output)
    return output


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu.device_baseline", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu, cuda or cuda:N")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--model", type=Path, help="a checkpoint's folder")
    model.add_argument("--shape", choices=list(SHAPES), default="tiny", help="random weights of this size, made on the device")
    parser.add_argument("--dtype", choices=list(_DTYPES), default="bfloat16")
    parser.add_argument("--weights", choices=["as-is", *FORMS], default="as-is", help="what random weights of layers are rounded to")
    parser.add_argument(
        "--kv", nargs="+", choices=["auto", *KV_FORMATS], default=["auto"], help="KV formats, one engine for each; auto: --dtype"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 64, 256], help="requests that decode at once")
    parser.add_argument("--context", type=int, default=512, help="tokens before the first that is decoded")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a round")
    parser.add_argument("--prefill", type=_prompts, nargs="+", default=[Prompts(1, 2048), Prompts(8, 512)], metavar="COUNTxLENGTH")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-graphs", action="store_true", help="every decode step is launched as it comes, none in advance")
    parser.add_argument("--no-run-ahead", action="store_true", help="no decode step is begun before the tokens of the one before are known")
    parser.add_argument("--batch-invariant", action="store_true", help="with kernels that sum in one order whatever the batch")
    parser.add_argument("--fetch-ahead", type=int, default=0, metavar="BYTES", help="of a row of a weight, while the launch before ends")
    parser.add_argument("--alone", action="store_true", help="without transformers, as where it is not installed")
    parser.add_argument("--output", type=Path, help="the results file; default: named after device, model and dtype")
    chosen = parser.parse_args(arguments)
    for name in ("context", "steps", "rounds"):
        if getattr(chosen, name) < 1:
            parser.error(f"--{name} is {getattr(chosen, name)}, it must be at least 1")
    if chosen.model is not None and chosen.weights != "as-is":
        parser.error(f"--weights is {chosen.weights}, a checkpoint's stay as they are")
    if min(chosen.sizes) < 1:
        parser.error(f"--sizes has {min(chosen.sizes)}, it must be at least 1")
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device is {chosen.device}, and torch {torch.__version__} finds no CUDA device")
    if chosen.fetch_ahead and not overlaps_launches(torch.device(chosen.device)):
        parser.error(f"--fetch-ahead is {chosen.fetch_ahead}, {chosen.device} does not begin a launch before the one before it ends")
    return chosen


def _prompts(text: str) -> Prompts:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not COUNTxLENGTH, like 8x512")
    return Prompts(int(found[1]), int(found[2]))


def _fetch_ahead(num_bytes: int) -> None:
    """Products of one row ask for so much of their weight while the launch before ends."""
    from compute_svc.kernels.row_linear import triton_kernel  # noqa: PLC0415 - Triton is where a GPU is

    triton_kernel.TILES = triton_kernel.TILES._replace(ahead=num_bytes)
    triton_kernel.GATED_TILES = triton_kernel.GATED_TILES._replace(ahead=num_bytes)


def _step_budget(chosen: argparse.Namespace) -> int:
    budget: int = max(*(prompts.num_prompts * prompts.length for prompts in chosen.prefill), *chosen.sizes)
    return budget


class _WaitingEngine(Engine):
    """Begins no step before the host knows the tokens of the one before."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._pass.begin_next = lambda plan: None  # type: ignore[method-assign]  # the product has no such switch


def _engine(model: CausalLM, chosen: argparse.Namespace, kv_format: KvFormat) -> EngineRunner:
    """An engine that takes every workload, each prefill in one step."""
    decoded = Prompts(max(chosen.sizes), chosen.context + _WARM_UP_STEPS + chosen.steps + 2)
    workloads = [decoded, *(Prompts(prompts.num_prompts, prompts.length + 1) for prompts in chosen.prefill)]
    return EngineRunner.around(
        model,
        max_requests=max(one.num_prompts for one in workloads),
        max_tokens=max(one.length for one in workloads),
        kv_tokens=max(one.num_prompts * one.length for one in workloads),
        step_budget_tokens=_step_budget(chosen),
        kv_format=kv_format,
        graphs=not chosen.no_graphs,
        kind=_WaitingEngine if chosen.no_run_ahead else Engine,
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
        "answers_with_graphs": _check_graphs(model),
    }


def _check_graphs(model: CausalLM) -> str:
    """Whether steps that are graphs, and begun in advance, give the answers of steps that are launched as they come.

    Raises:
        AssertionError: They do not.
    """
    prompts = random_tokens(model, 13, 37, seed=5)
    answers = []
    for graphs in (False, True):
        runner = EngineRunner.around(model, max_requests=16, max_tokens=80, kv_tokens=16 * 80, step_budget_tokens=512, graphs=graphs)
        answers.append(runner.answers(prompts, 40))
    same = sum(one == other for one, other in zip(*answers, strict=True))
    assert same == len(prompts), f"{same} of {len(prompts)} answers are the same with graphs and without"
    return f"{same} of {len(prompts)} answers are the same"


def _check_rounded(weights: RandomWeights, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """A small model of rounded weights here and on the CPU: they may differ by what rounds otherwise, an activation's code now and then.

    Raises:
        AssertionError: They differ by more than that.
    """
    model = build_random(weights, dtype, device)
    tokens = random_tokens(model, 1, 100, seed=1)[0]
    ours, theirs = whole_logits(model, tokens), whole_logits(build_random(weights, torch.float32, _CPU), tokens)
    relative = float((ours - theirs).square().mean().sqrt() / theirs.std())
    assert relative <= ROUNDED_TOLERANCE, (
        f"logits of rounded weights are off by {relative:.3f} of their spread, the limit is {ROUNDED_TOLERANCE}"
    )
    return {"beside": "this engine on the CPU", "kernels": model.kernels, "error_of_spread": relative}


def _on_cpu(weights: RandomWeights) -> EngineReference:
    return EngineReference(build_random(weights, torch.float32, _CPU))


def _rival(weights: Path | RandomWeights, dtype: torch.dtype, device: torch.device) -> Any:
    from tests.bench.gpu import transformers_rival  # noqa: PLC0415 - it imports transformers, which may not be there

    return transformers_rival.TransformersRival(transformers_rival.load_rival(weights, dtype, device))


def _measure_decode(
    runners: Sequence[Runner], model: CausalLM, chosen: argparse.Namespace, kv_format: KvFormat, ceilings: Ceilings
) -> list[dict[str, Any]]:
    measured = []
    prompts = random_tokens(model, max(chosen.sizes), chosen.context, seed=3)
    for size in chosen.sizes:
        rounds = [prompts[:size]] * chosen.rounds
        tokens = size * chosen.steps
        figures = _in_turns(runners, tokens, rounds, lambda runner, prompts: runner.decode(prompts, _WARM_UP_STEPS, chosen.steps))
        rate = figures[EngineRunner.name]["tokens_per_s"]["median"]
        # While the steps are timed, contexts grow.
        seen = chosen.context + _WARM_UP_STEPS + chosen.steps // 2
        limit = {"limit": _limit(model, kv_format, size, seen, rate, ceilings)}
        measured.append(
            {"requests": size, "context_tokens": chosen.context, "kv": kv_format.name, "tokens_per_round": tokens, **figures, **limit}
        )
        print(json.dumps(measured[-1]), flush=True)
    return measured


def _limit(model: CausalLM, kv_format: KvFormat, num_requests: int, context_tokens: int, rate: float, ceilings: Ceilings) -> dict[str, Any]:
    """The tokens per second that reading every weight and all KV once allows, and how near a rate comes."""
    config = model.config
    weights = tensor_bytes(model.layers) + tensor_bytes(model.head)
    kv = num_requests * context_tokens * kv_format.bytes_per_token(config.num_layers, config.num_kv_heads, config.kv_head_dim)
    limit = num_requests / ceilings.limit_s(weights + kv)
    return {
        "weight_bytes": weights,
        "kv_bytes": kv,
        "step_ms": round(1e3 * num_requests / rate, 3),
        "tokens_per_s": round(limit, 1),
        "percent": round(100 * rate / limit, 1),
    }


def _measure_prefill(
    runners: Sequence[Runner],
    model: CausalLM,
    weights: Path | RandomWeights,
    chosen: argparse.Namespace,
    kv_format: KvFormat,
    ceilings: Ceilings,
) -> list[dict[str, Any]]:
    measured = []
    for index, prompts in enumerate(chosen.prefill):
        # New prompts for every round: the engine would find old ones in its cache. One round more warms up.
        warm_up, *rounds = [random_tokens(model, *prompts, seed=1000 * (index + 1) + number) for number in range(chosen.rounds + 1)]
        for runner in runners:
            runner.prefill(warm_up)
        figures = _in_turns(runners, prompts.num_prompts * prompts.length, rounds, lambda runner, prompts: runner.prefill(prompts))
        measured.append({"prompts": prompts.num_prompts, "prompt_tokens": prompts.length, "kv": kv_format.name, **figures})
        if isinstance(weights, RandomWeights):
            rate = figures[EngineRunner.name]["tokens_per_s"]["median"]
            measured[-1]["limit"] = _prefill_limit(weights, chosen, prompts, rate, ceilings)
        print(json.dumps(measured[-1]), flush=True)
    return measured


def _prefill_limit(weights: RandomWeights, chosen: argparse.Namespace, prompts: Prompts, rate: float, ceilings: Ceilings) -> dict[str, Any]:
    """The tokens per second that a device's products allow, of layers, causal attention and the head for one row of each prompt."""
    tokens, config = prompts.num_prompts * prompts.length, weights.config
    head = f"{weights.names.embedding}.weight", f"{weights.names.lm_head}.weight"
    of_layers = sum(math.prod(info.shape) for name, info in weights.tensors.items() if len(info.shape) == 2 and name not in head)
    products = 2.0 * (tokens * of_layers + prompts.num_prompts * config.vocab_size * config.hidden_size)
    # Scores and values: of each query half the prompt, on average.
    attention = 2.0 * tokens * prompts.length * config.num_layers * config.num_heads * config.head_dim
    kind = chosen.weights if chosen.weights in ("int8", "fp8") else "bf16"
    limit = tokens / (ceilings.limit_s(0, products, kind) + ceilings.limit_s(0, attention))
    return {"tokens_per_s": round(limit, 1), "percent": round(100 * rate / limit, 1)}


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
