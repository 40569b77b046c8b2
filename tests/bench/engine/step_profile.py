"""Where the time of a decode step goes at several sizes of the batch, part by part: JSON, and a picture for each size.

`python -m tests.bench.engine.step_profile`: the engine alone, on a model whose layers are attention and then an MLP. Every function that is a part's own is
timed where it is called; what no part has is Python around them. The clock is read some ten times a layer: what that costs is told as well, from
steps of the same requests without it, in turns. Before anything is measured, tokens with the clock are compared with those without.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.engine.steps.step_drawing import StepDrawing
from compute_svc.kernels.native import use_native_kernels
from compute_svc.layers import attention, decoder_layer
from compute_svc.layers.attention import Attention
from compute_svc.layers.heads import ProjectedHeads
from compute_svc.layers.mlp import Mlp
from compute_svc.models.causal_lm import CausalLM, Embedding, Head
from compute_svc.models.registry import load_model
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.ablations.engines import CPU, PAGE_SIZE_TOKENS, EngineSizes, make_engine
from tests.bench.engine.step_picture import drawn
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "step_profile.json"
TINY_MODEL = Path(__file__).parents[2] / "tiny_model"
REST = "Python and the rest"
PARTS = (
    "norm and QKV",
    "rotary and KV write",
    "attention",
    "output",
    "norm and MLP",
    "head",
    "draw",
    "scheduler and builder",
    REST,
)
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Clock:
    """Seconds by part; a part within another counts for itself alone.

    Args:
        now: Tells the time, seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.seconds = dict.fromkeys(PARTS, 0.0)
        # Of the parts under way, the outermost first: what was spent in parts within each.
        self._within: list[float] = []

    def timed(self, part: str | Callable[..., str], function: Callable[_P, _R]) -> Callable[_P, _R]:
        """A function that does the same and is timed.

        Args:
            part: Whose time it is, or what tells it from the arguments.
            function: To time.
        """

        def run(*arguments: _P.args, **named: _P.kwargs) -> _R:
            self._within.append(0.0)
            began = self._now()
            try:
                return function(*arguments, **named)
            finally:
                took = self._now() - began
                within = self._within.pop()
                self.seconds[part if isinstance(part, str) else part(*arguments, **named)] += took - within
                if self._within:
                    self._within[-1] += took

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times every part for as long as the block runs."""
        layer = "norm and QKV", "norm and MLP"
        places: list[tuple[object, str, str | Callable[..., str]]] = [
            (decoder_layer, "_normed", lambda x, norm, part: layer[not isinstance(part, Attention)]),
            (ProjectedHeads, "forward", layer[0]),
            (attention, "rotary_", "rotary and KV write"),
            (attention, "place_heads", "rotary and KV write"),
            (attention, "decode_attention", "attention"),
            (CausalLM, "prepare", "attention"),
            (attention, "linear", "output"),
            (Mlp, "forward", layer[1]),
            (Embedding, "forward", REST),
            (Head, "forward", "head"),
            (StepDrawing, "draw", "draw"),
            *((Scheduler, name, "scheduler and builder") for name in ("step", "complete", "accept")),
            (BatchBuilder, "build", "scheduler and builder"),
        ]
        with ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield


class Decoding:
    """Requests that decode and do not end.

    Args:
        model: Computes.
        num_requests: At once.
        context_tokens: Of each, before the first step.
        num_steps: At most.
    """

    def __init__(self, model: CausalLM, num_requests: int, context_tokens: int, num_steps: int) -> None:
        # While prompts are computed in chunks, those that have begun go on.
        tokens = context_tokens + num_steps + num_requests * context_tokens // 256 + 8
        sizes = EngineSizes(num_requests * (-(-tokens // PAGE_SIZE_TOKENS) + 1), tokens, num_requests)
        self._engine: Engine = make_engine(model, sizes)
        self._num_requests = num_requests
        random = np.random.default_rng(0)
        for number in range(num_requests):
            prompt = random.integers(10, model.config.vocab_size, context_tokens)
            self._engine.submit(Request(number, str(number), prompt, np.empty(0, dtype=np.int64), tokens - context_tokens, 0.0))
        while len(self.step()) < num_requests:
            pass

    def step(self) -> list[int]:
        """One step; its tokens."""
        output = self._engine.step(0.0)
        assert output is not None and not output.released, "every request goes on"
        return [] if output.rows is None else output.rows.tokens.tolist()


def profile(model: CausalLM, num_requests: int, context_tokens: int, num_steps: int) -> dict[str, Any]:
    """Milliseconds a step by part, medians over steps; and a step with and without the clock.

    Raises:
        AssertionError: The clock changes what is computed.
    """
    watched, plain = (Decoding(model, num_requests, context_tokens, num_steps + 1) for _ in range(2))
    parts: dict[str, list[float]] = {part: [] for part in PARTS}
    with_clock, without = [], []
    for index in range(num_steps + 1):
        clock = Clock()
        with clock.watching():
            began = time.perf_counter()
            tokens = watched.step()
            took = time.perf_counter() - began
        began = time.perf_counter()
        assert plain.step() == tokens, "the clock changes nothing"
        plain_took = time.perf_counter() - began
        # The first step is a warm-up.
        if index:
            with_clock.append(took)
            without.append(plain_took)
            clock.seconds[REST] = took - sum(seconds for part, seconds in clock.seconds.items() if part != REST)
            for part, seconds in clock.seconds.items():
                parts[part].append(1e3 * seconds)
    medians = {part: statistics.median(values) for part, values in parts.items()}
    total = sum(medians.values())
    return {
        "requests": num_requests,
        "context_tokens": context_tokens,
        "steps": num_steps,
        "step_ms": round(1e3 * statistics.median(without), 3),
        "step_with_clock_ms": round(1e3 * statistics.median(with_clock), 3),
        "parts_ms": {part: round(value, 4) for part, value in medians.items()},
        "parts_percent": {part: round(100 * value / total, 1) for part, value in medians.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results file and the pictures."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine.step_profile", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder, quantised ones too; default: the one `triserve up` serves")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--activations", choices=("auto", "float", "int8"), default="auto", help="see COMPUTE_ACTIVATIONS")
    parser.add_argument("--native-kernels", choices=("auto", "off", "required"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--context-tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="a tiny model and a few steps, to see that it works; the figures mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="pictures lie beside it")
    chosen = parser.parse_args(arguments)
    usual = TINY_MODEL if chosen.quick else None
    folder = chosen.model or usual or resolve_model(None, download_from_hub, os.environ).folder
    torch.set_num_threads(chosen.threads)
    use_native_kernels(chosen.native_kernels)
    model = load_model(folder, dtype=getattr(torch, chosen.dtype), device=CPU, activations=chosen.activations)
    context, steps = (64, 5) if chosen.quick else (chosen.context_tokens, chosen.steps)
    sizes = [profile(model, num, context, steps) for num in chosen.requests]
    settings = {name: getattr(chosen, name) for name in ("dtype", "activations", "native_kernels", "threads")}
    document = {
        "what": "where the time of a decode step goes: medians over steps, milliseconds",
        **describe_environment(CPU),
        "model": folder.name,
        "kernels": model.kernels,
        "is_quick": chosen.quick,
        "settings": settings,
        "sizes": sizes,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    for found in sizes:
        picture = drawn(found, f"{folder.name}, {chosen.dtype}, {chosen.threads} threads")
        chosen.output.with_name(f"{chosen.output.stem}_{found['requests']}.svg").write_text(picture)
        print(
            f"{found['requests']} requests: {found['step_ms']} ms ({found['step_with_clock_ms']} with the clock) {found['parts_percent']}"
        )


if __name__ == "__main__":
    main()
