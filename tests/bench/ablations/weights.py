"""Formats of weights, and the kernels that multiply them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from compute_svc.kernels.cpu_features import multiplies_bfloat16
from compute_svc.kernels.native import use_native_kernels
from compute_svc.kernels.native.library import NativeMode
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.registry import load_model
from tests.bench.ablations.comparison import Comparison, Figures, Subject, in_turns
from tests.bench.ablations.engines import CPU, EngineSizes, Load, Setup, make_engine, plan_requests
from tests.bench.engine.engine_runner import EngineRunner

ROOT = Path(__file__).parents[3]
_INT8 = ("--weights", "int8", "--head")
_INT4 = ("--weights", "int4", "--group", "32", "--activations", "int8", "--head")
_PROMPT_TOKENS = 32
_PREFILL_TOKENS = 512
_WARM_UP = 2
# Tokens of all requests that are timed, and the fewest steps.
_TIMED_TOKENS, _FEWEST_STEPS = 64, 4
_INVARIANT = "the same tokens alone and in a batch"


def w8a8(setup: Setup) -> Iterator[Comparison]:
    """Integers times integers against numbers: prompts, and answers at several sizes of the batch."""
    models = {"float32": _float(setup, torch.float32)}
    if multiplies_bfloat16():
        models["bfloat16"] = _float(setup, torch.bfloat16)
    models["W8A8"] = _quantised(setup, _INT8)
    sizes = (1, 16) if setup.is_quick else (1, 16, 64)
    for figure, runs in _speeds(models, sizes, setup).items():
        for base in [name for name in runs if name != "W8A8"]:
            subject = Subject("W8A8", figure, "PPL: about +100 %", _INVARIANT)
            yield from subject.rows({base: runs[base], "W8A8": runs["W8A8"]}, ("tokens_per_s",))


def int4(setup: Setup) -> Iterator[Comparison]:
    """Half the bytes and more work for each: ahead while reading weights is what takes time."""
    models = {"int8": _quantised(setup, _INT8), "int4, groups of 32": _quantised(setup, _INT4)}
    sizes = (1, 16) if setup.is_quick else (1, 4, 16, 64, 128)
    for figure, runs in _speeds(models, sizes, setup).items():
        subject = Subject("int4", figure, "PPL: int4 ahead below 64, level at 128", _INVARIANT)
        yield from subject.rows(runs, ("tokens_per_s",))


def native_kernels(setup: Setup) -> Iterator[Comparison]:
    """Kernels of our own against torch's operations, with numbers and with integers."""
    modes: dict[str, NativeMode] = {"torch's operations": "off", "native": "required"}
    try:
        for format_ in ("float", "int8"):
            models = {}
            for name, mode in modes.items():
                use_native_kernels(mode)
                models[name] = _float(setup, setup.dtype) if format_ == "float" else _quantised(setup, _INT8)
            sizes = (1, 16) if setup.is_quick else (1, 16, 64)
            for figure, runs in _speeds(models, sizes, setup, lambda name: use_native_kernels(modes[name])).items():
                subject = Subject("native kernels", f"{format_} weights, {figure}", "-", _INVARIANT)
                yield from subject.rows(runs, ("tokens_per_s",))
    finally:
        use_native_kernels("auto")


def _speeds(
    models: Mapping[str, CausalLM], sizes: Sequence[int], setup: Setup, choose: Callable[[str], None] = lambda name: None
) -> dict[str, dict[str, list[Figures]]]:
    """Figures of each round, by what is computed and by model.

    Args:
        models: By name; the first is what others are compared with.
        sizes: Requests that decode at once.
        setup: How often.
        choose: Called with a model's name before it computes.

    Raises:
        AssertionError: A model gives other tokens in a batch than alone.
    """
    runners = {}
    for name, model in models.items():
        choose(name)
        _check_invariance(model)
        runners[name] = _runner(model, max(sizes))
    vocab_size = next(iter(models.values())).config.vocab_size
    generator = torch.Generator().manual_seed(0)

    def prompts(num: int, tokens: int) -> torch.Tensor:
        return torch.randint(10, vocab_size, (num, tokens), generator=generator)

    def prefill(name: str) -> Figures:
        choose(name)
        return {"tokens_per_s": _PREFILL_TOKENS / runners[name].prefill(prompts(1, _PREFILL_TOKENS))}

    def decode(name: str, size: int) -> Figures:
        choose(name)
        steps = _num_steps(size)
        return {"tokens_per_s": size * steps / runners[name].decode(prompts(size, _PROMPT_TOKENS), _WARM_UP, steps)}

    found = {f"prefill of {_PREFILL_TOKENS}": in_turns({name: partial(prefill, name) for name in models}, setup.rounds)}
    for size in sizes:
        found[f"decode at {size}"] = in_turns({name: partial(decode, name, size) for name in models}, setup.rounds)
    return found


def _num_steps(size: int) -> int:
    return max(_FEWEST_STEPS, _TIMED_TOKENS // size)


def _runner(model: CausalLM, most: int) -> EngineRunner:
    # While prompts are computed in chunks, those that have begun are paused: they need no more tokens than these.
    max_tokens = _PROMPT_TOKENS + _WARM_UP + _num_steps(1) + 2
    kv_tokens = max(most * max_tokens, 2 * _PREFILL_TOKENS)
    return EngineRunner.around(
        model, max_requests=most, max_tokens=max(max_tokens, _PREFILL_TOKENS + 2), kv_tokens=kv_tokens, step_budget_tokens=512
    )


def _check_invariance(model: CausalLM) -> None:
    planned = plan_requests(model, 8, max_prompt=48, max_output=8)
    found = []
    for at_once in (1, len(planned)):
        sizes = EngineSizes(len(planned) * 8, 64, at_once)
        found.append(Load(make_engine(model, sizes), planned).run().tokens)
    assert found[0] == found[1], "a request's tokens do not depend on the others of its batch"


def _float(setup: Setup, dtype: torch.dtype) -> CausalLM:
    return load_model(setup.folder, dtype=dtype, device=CPU, activations="float")


def _quantised(setup: Setup, options: Sequence[str]) -> CausalLM:
    return load_model(_folder(setup, options), dtype=setup.dtype, device=CPU, activations="int8")


def _folder(setup: Setup, options: Sequence[str]) -> Path:
    """The model as `triserve quantize` stores it; made once."""
    folder = setup.scratch / "-".join(option.strip("-") for option in options)
    if not folder.exists():
        folder.mkdir()
        command = [sys.executable, "-m", "compute_svc.quantise", str(setup.folder), str(folder), *options]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return folder
