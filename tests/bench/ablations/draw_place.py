"""Tokens drawn where the logits are, while requests run ahead, against whole rows for a sampler whose verdict each request waits for.

All services, over a model whose step takes a fixed time. Both pipelines are there at once, and one is idle while the other is measured.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from tests.bench.ablations.comparison import Comparison, Figures, Subject, in_turns
from tests.bench.ablations.engines import Setup
from tests.bench.drawing.draw_overhead_served import fixed_step_parts, served_tokens_per_s
from tests.bench.services.whole_pipeline import running
from tests.ports import free_port

_STEP_MS = 10.0
# SmolLM2's.
_WIDTH = 49152
_PLACES = {"in the sampler": "service", "on the device": "device"}


def draw_place(setup: Setup) -> Iterator[Comparison]:
    """Tokens a second through all services at temperature 1."""
    ports = {name: free_port() for name in _PLACES}
    with ExitStack() as stack:
        for name, draw in _PLACES.items():
            runtime = setup.scratch / draw
            runtime.mkdir()
            stack.enter_context(running(fixed_step_parts(ports[name], runtime, step_ms=_STEP_MS, width=_WIDTH, draw=draw)))
        # Logits depend on the number of the step: these are the first of both.
        sampler, device = [_answer(port) for port in ports.values()]
        assert sampler == device, "a seed gives the same text wherever tokens are drawn"
        for size in (4,) if setup.is_quick else (16, 64):

            def run(name: str, size: int = size) -> Figures:
                return {"tokens_per_s": served_tokens_per_s(ports[name], size, 1.0)}

            runs = in_turns({name: partial(run, name) for name in ports}, setup.rounds)
            case = f"all services, steps of {_STEP_MS:.0f} ms, {_WIDTH} logits, temperature 1, {size} at once"
            yield from Subject("draw", case, "-", "the same text of a seed").rows(runs, ("tokens_per_s",))


def _answer(port: int) -> str:
    body = {"prompt": "The sea", "max_tokens": 32, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60.0) as response:
        text: str = json.load(response)["choices"][0]["text"]
    assert text, "an answer has text"
    return text
