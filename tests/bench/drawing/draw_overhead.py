"""What it costs to sample instead of taking the likeliest token: the engine with a model whose step takes a fixed time, greedy and sampled in turns.

Tokens per second and steps of the same requests, medians of rounds. "in the service" plays the sampler's part at no cost, with verdicts that come one
call late: what whole rows and waiting cost at least; steps in which nobody has anything to compute take no time. A device that computes would draw
too, so the time of the draw itself, on this CPU, is reported apart: what is left of the difference is what sampling costs the host. Writes a results file.
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

from compute_svc.drawing import Drawer
from compute_svc.drawing.results import Drawn
from compute_svc.engine.steps import step_drawing
from compute_svc.engine.steps.step_drawing import DrawPlace
from compute_svc.wire.request import GREEDY, Request
from tests.bench.engine.fixed_step import fixed_step_engine
from tests.environment import describe_environment
from triserve.rpc.sampling import Sampling

RESULTS = Path(__file__).parents[1] / "results" / "draw_overhead.json"
KINDS = {
    "greedy": GREEDY,
    "temperature 1": Sampling(seed=1),
    "temperature 0.7, top_p 0.9": Sampling(seed=1, temperature=0.7, top_p=0.9),
    "top_k 50": Sampling(seed=1, top_k=50),
    "min_p 0.05": Sampling(seed=1, min_p=0.05),
    "temperature 1, penalties": Sampling(seed=1, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1),
}
_PROMPT_TOKENS = 8


class _TimedDrawer(Drawer):
    """Adds up the time that draws take."""

    spent_s = 0.0

    def draw(self, *arguments: Any) -> Drawn:
        """See `Drawer`."""
        begin = time.perf_counter()
        drawn = super().draw(*arguments)
        _TimedDrawer.spent_s += time.perf_counter() - begin
        return drawn


def _run(kind: Sampling, place: DrawPlace, arguments: argparse.Namespace, width: int, concurrency: int) -> dict[str, float]:
    engine = fixed_step_engine(arguments.step_ms / 1000, width, place=place)
    empty = np.empty(0, dtype=np.int64)
    for number in range(concurrency):
        prompt = np.full(_PROMPT_TOKENS, number, dtype=np.int64)
        engine.submit(Request(number, "", prompt, empty, arguments.tokens, 0.0, sampling=kind))
    _TimedDrawer.spent_s = 0.0
    begin = time.perf_counter()
    tokens = 0
    verdicts: list[tuple[int, int, list[int]]] = []
    while engine.load.running_requests or engine.load.waiting_requests:
        due, verdicts = verdicts, []
        output = engine.step(time.perf_counter())
        for verdict in due:
            engine.verdict(*verdict)
        if output is None:
            continue
        assert not any(released.error for released in output.released)
        if output.rows is not None:
            numbers, positions = output.rows.numbers.tolist(), output.rows.positions.tolist()
            tokens += len(numbers)
            for one in output.rows.logits:
                verdicts.append((numbers[one.row], positions[one.row], [int(np.frombuffer(one.logits, "<f4").argmax())]))
    seconds = time.perf_counter() - begin
    assert tokens == concurrency * arguments.tokens, "every answer has its length"
    steps = engine.load.steps
    return {
        "tokens_per_s": tokens / seconds,
        "steps": steps,
        "ms_per_step": 1000 * seconds / steps,
        "draw_ms_per_step": 1000 * _TimedDrawer.spent_s / steps,
    }


def _compare(arguments: argparse.Namespace, width: int, concurrency: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for name, kind in KINDS.items():
            runs.setdefault(name, []).append(_run(kind, DrawPlace.DEVICE, arguments, width, concurrency))
        runs.setdefault("temperature 1 in the service", []).append(
            _run(KINDS["temperature 1"], DrawPlace.SERVICE, arguments, width, concurrency)
        )
    greedy = statistics.median(run["tokens_per_s"] for run in runs["greedy"])
    host = {name: statistics.median(run["ms_per_step"] - run["draw_ms_per_step"] for run in of_kind) for name, of_kind in runs.items()}
    rows: dict[str, Any] = {}
    for name, of_kind in runs.items():
        speeds = [run["tokens_per_s"] for run in of_kind]
        rows[name] = {
            "tokens_per_s": {"median": round(statistics.median(speeds), 1), "min": round(min(speeds), 1), "max": round(max(speeds), 1)},
            "of_greedy": round(statistics.median(speeds) / greedy, 4),
            "steps": int(of_kind[0]["steps"]),
            "ms_per_step": round(statistics.median(run["ms_per_step"] for run in of_kind), 3),
            "draw_ms_per_step": round(statistics.median(run["draw_ms_per_step"] for run in of_kind), 3),
            "of_greedy_but_for_the_draw": round(host["greedy"] / host[name], 4),
        }
        print(f"width {width} concurrency {concurrency}: {name}: {rows[name]}", flush=True)
    return {"logits_width": width, "concurrency": concurrency, "kinds": rows}


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=10.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vars(step_drawing)["Drawer"] = _TimedDrawer
    document = {
        "what": "tokens per second, sampled and greedy, over a model whose step takes a fixed time",
        **describe_environment(torch.device("cpu")),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "comparisons": [_compare(arguments, width, concurrency) for width in arguments.widths for concurrency in arguments.concurrency],
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
