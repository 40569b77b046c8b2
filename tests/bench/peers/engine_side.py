"""This engine in a process of its own, as COMPUTE_* set it up: figures or answers as JSON. Knows no service."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from tests.bench.engine.engine_runner import EngineRunner
from tests.bench.peers.contender import (
    CONTEXT_TOKENS,
    DECODE_SIZES,
    DECODE_STEPS,
    PREFILL_TOKENS,
    WARM_UP_STEPS,
    decode_column,
    prefill_column,
)


def speeds(engine: Engine, seed: int) -> dict[str, float]:
    """Tokens per second of prefill and of decode."""
    drawn = torch.Generator().manual_seed(seed)

    def prompts(number: int, length: int) -> torch.Tensor:
        return torch.randint(0, engine.logits_width, (number, length), generator=drawn)

    runner = EngineRunner(engine, max(PREFILL_TOKENS + 1, CONTEXT_TOKENS + WARM_UP_STEPS + DECODE_STEPS + 2))
    runner.prefill(prompts(1, PREFILL_TOKENS))
    figures = {prefill_column(): PREFILL_TOKENS / runner.prefill(prompts(1, PREFILL_TOKENS))}
    for size in DECODE_SIZES:
        figures[decode_column(size)] = size * DECODE_STEPS / runner.decode(prompts(size, CONTEXT_TOKENS), WARM_UP_STEPS, DECODE_STEPS)
    return figures


def answers(engine: Engine, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """Greedy tokens, all prompts at once."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        engine.submit(Request(number, "", np.array(prompt, np.int64), np.empty(0, np.int64), num_tokens, 0.0))
    num_left = len(prompts)
    while num_left:
        output = engine.step(0.0)
        assert output is not None, "requests are under way"
        if output.rows is not None:
            for number, token in zip(output.rows.numbers.tolist(), output.rows.tokens.tolist(), strict=True):
                found[number].append(token)
        for released in output.released:
            assert released.error is None, "no request fails"
            num_left -= 1
    return found


def main() -> None:
    """Answers one question, given as JSON, on standard output."""
    question: dict[str, Any] = json.loads(sys.argv[1])
    settings = Settings()
    torch.set_num_threads(settings.threads)
    engine = load_engine(settings)
    if "seed" in question:
        json.dump(speeds(engine, question["seed"]), sys.stdout)
    else:
        json.dump(answers(engine, question["prompts"], question["num_tokens"]), sys.stdout)


if __name__ == "__main__":
    main()
