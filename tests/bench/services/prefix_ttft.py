"""Time to the first token of a long system prompt and a short question, when nobody has asked with it before and when somebody has.

`python -m tests.bench.services.prefix_ttft`: the engine alone, in one process. A cold request is the first of its tenant, so that the prefix cache has nothing
for it; a hot one brings another question behind the same system prompt. Cold and hot take turns. Before anything is measured a hot answer is compared
with the cold one to the same question. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from tests.bench.summary import summary_of
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "prefix_ttft.json"
TINY_MODEL = Path(__file__).parents[2] / "tiny_model"
# What was asked of the prefix cache.
WANTED_RATIO = 10.0
_ANSWER_TOKENS = 8

Tokens = npt.NDArray[np.int64]


class Asked(NamedTuple):
    """One request's answer.

    Attributes:
        ttft_ms: From the request's arrival at the engine to its first token.
        cached_tokens: Of its prompt.
        tokens: Its answer.
    """

    ttft_ms: float
    cached_tokens: int
    tokens: list[int]


class Asker:
    """Asks one request after the other.

    Args:
        engine: Without other requests.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = 0

    def ask(self, tenant: str, prompt: Tokens) -> Asked:
        """Greedily, to the end of the answer."""
        self._number += 1
        tokens: list[int] = []
        cached = ttft_s = 0.0
        began = time.perf_counter()
        self._engine.submit(Request(self._number, tenant, prompt, np.empty(0, dtype=np.int64), _ANSWER_TOKENS, 0.0))
        while len(tokens) < _ANSWER_TOKENS:
            output = self._engine.step(0.0)
            assert output is not None and all(released.error is None for released in output.released), "the request goes on"
            if output.rows is not None and len(output.rows.tokens):
                ttft_s = ttft_s or time.perf_counter() - began
                tokens += output.rows.tokens.tolist()
            cached += sum(started.cached_tokens for started in output.started)
        return Asked(1e3 * ttft_s, int(cached), tokens)


def measure(engine: Engine, system_tokens: int, question_tokens: int, rounds: int) -> dict[str, Any]:
    """Cold and hot, in turns.

    Raises:
        AssertionError: A prefix that is cached changes an answer, or is not found.
    """
    asker, random = Asker(engine), np.random.default_rng(0)

    def made(count: int) -> Tokens:
        return random.integers(10, engine.logits_width, count)

    system = made(system_tokens)
    question = made(question_tokens)
    asker.ask("warm-up", np.concatenate((system, question)))
    cold = asker.ask("first", np.concatenate((system, question)))
    asker.ask("second", np.concatenate((system, made(question_tokens))))
    hot = asker.ask("second", np.concatenate((system, question)))
    page = engine.config.page_size_tokens
    assert cold.cached_tokens == 0 and hot.cached_tokens >= system_tokens // page * page, "the system prompt is found, in whole pages"
    assert hot.tokens == cold.tokens, "a prefix that is cached changes no token"
    runs = []
    for index in range(rounds):
        first = asker.ask(f"tenant {index}", np.concatenate((system, made(question_tokens))))
        again = asker.ask(f"tenant {index}", np.concatenate((system, made(question_tokens))))
        assert first.cached_tokens < page <= again.cached_tokens, "one is cold and the other hot"
        runs.append({"cold_ttft_ms": first.ttft_ms, "hot_ttft_ms": again.ttft_ms, "ratio": first.ttft_ms / again.ttft_ms})
    return {
        "system_tokens": system_tokens,
        "question_tokens": question_tokens,
        "cached_tokens": hot.cached_tokens,
        **summary_of(runs),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.services.prefix_ttft", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; default: the one `triserve up` serves")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--system-tokens", type=int, default=1000)
    parser.add_argument("--question-tokens", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model and three rounds, to see that it works; the figures mean nothing"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    usual = TINY_MODEL if chosen.quick else None
    folder = chosen.model or usual or resolve_model(None, download_from_hub, os.environ).folder
    torch.set_num_threads(chosen.threads)
    engine = load_engine(Settings(model=folder, dtype=chosen.dtype, threads=chosen.threads, kv_cache_bytes=256 << 20))
    found = measure(engine, chosen.system_tokens, chosen.question_tokens, 3 if chosen.quick else chosen.rounds)
    document = {
        "what": "time to the first token of a system prompt and a question, cold and with the system prompt in the prefix cache",
        **describe_environment(torch.device("cpu")),
        "model": folder.name,
        "dtype": engine.dtype,
        "kernels": engine.kernels,
        "checked": "a hot answer has the tokens of the cold one to the same question",
        "rounds": 3 if chosen.quick else chosen.rounds,
        "is_quick": chosen.quick,
        "wanted_ratio": WANTED_RATIO,
        "has_wanted_ratio": found["ratio"]["median"] >= WANTED_RATIO,
        **found,
    }
    chosen.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"cold {found['cold_ttft_ms']}, hot {found['hot_ttft_ms']}, ratio {found['ratio']}")


if __name__ == "__main__":
    main()
