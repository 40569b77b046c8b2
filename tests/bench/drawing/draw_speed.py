"""How long it takes to draw the rows of a step where their logits are: microseconds a step and a row, by combination of parameters, rows and width.

First a few draws are compared with the sampler's: nothing is measured that is wrong. Medians of steps of requests that go on; a draw ends
with its results on the host. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compute_svc.drawing import Drawer, RequestDraw
from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.bench.drawing.draw_rows import COMBINATIONS, history, realistic_logits, sampling_of
from tests.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results" / "draw_speed.json"
KINDS = ("greedy", "temperature 1", "min_p", "top_k 50", "top_p 0.9", "typical_p", "xtc", "penalties", "everything")
_PROMPT_TOKENS = 500
_CHECKED_ROWS = 4


def _measure(name: str, logits: torch.Tensor, arguments: argparse.Namespace) -> dict[str, Any]:
    rows, width = logits.shape
    random = np.random.default_rng(0)
    samplings = [sampling_of(COMBINATIONS[name], seed) for seed in range(rows)]
    requests = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=_PROMPT_TOKENS, logits_width=width) for one in samplings]
    drawer = Drawer(width, logits.device)
    known = np.empty((rows, _PROMPT_TOKENS + arguments.warm_steps + arguments.steps), dtype=np.int64)
    known[:, :_PROMPT_TOKENS] = [history(random, _PROMPT_TOKENS) for _ in samplings]
    times = []
    for step in range(arguments.warm_steps + arguments.steps):
        length = _PROMPT_TOKENS + step
        positions = np.full(len(requests), length - _PROMPT_TOKENS)
        begin = time.perf_counter()
        drawn = drawer.draw(logits, requests, positions, known[:, :length].__getitem__)
        times.append(1e6 * (time.perf_counter() - begin))
        if step == 0:
            _check(drawn.tokens.tolist(), logits, samplings, known)
        known[:, length] = drawn.tokens
    us = statistics.median(times[arguments.warm_steps :])
    result = {
        "kind": name,
        "logits_width": width,
        "rows": rows,
        "us": round(us, 1),
        "us_per_row": round(us / rows, 2),
        "min_us": round(min(times), 1),
    }
    print(result, flush=True)
    return result


def _check(tokens: list[int], logits: torch.Tensor, samplings: list[Any], known: Any) -> None:
    for row in range(min(_CHECKED_ROWS, len(tokens))):
        changes = Changes(samplings[row], 0, (), known[row, :_PROMPT_TOKENS].tolist(), logits.shape[1])
        expected = draw_token(logits[row].cpu().numpy(), samplings[row], changes, 0)
        assert tokens[row] == expected, f"row {row} draws {tokens[row]}, the sampler {expected}"


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--widths", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(COMBINATIONS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    results = []
    with torch.inference_mode():
        for width in arguments.widths:
            logits = torch.from_numpy(realistic_logits(np.random.default_rng(width), max(arguments.rows), width)).to(device)
            results += [_measure(name, logits[:rows], arguments) for name in arguments.kinds for rows in arguments.rows]
    document = {
        "what": "time to draw the rows of a step on the device of their logits",
        **describe_environment(device),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "results": results,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
