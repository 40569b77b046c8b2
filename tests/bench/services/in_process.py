"""The engine alone, in one process without any service, on the same requests that `triserve bench` sends: figures as JSON.

All torch work is on the main thread, which does nothing else. Requests are greedy with exact lengths, a closed loop keeps as many under way
as asked for, and no text is made: this is what the services are measured against.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import StepOutput
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, PlannedRequest, WorkloadConfig, make_workload, read_lengths


class ClosedLoop:
    """Keeps `concurrency` requests in an engine until all are done.

    Args:
        engine: empty.
        requests: to compute, in order.
        concurrency: requests under way.
    """

    def __init__(self, engine: Engine, requests: list[PlannedRequest], concurrency: int) -> None:
        self._engine = engine
        self._waiting = list(reversed(requests))
        self._concurrency = concurrency
        self._planned: dict[int, PlannedRequest] = {}
        self._sent_at_s: dict[int, float] = {}
        self.ttft_s: dict[int, float] = {}
        self.num_tokens: dict[int, int] = {}

    def run(self) -> float:
        """Computes everything; returns the seconds it took."""
        began = time.perf_counter()
        self._fill()
        while self._planned:
            output = self._engine.step(time.perf_counter())
            assert output is not None, "requests are under way"
            self._take(output, time.perf_counter())
            self._fill()
        return time.perf_counter() - began

    def _fill(self) -> None:
        while self._waiting and len(self._planned) < self._concurrency:
            planned = self._waiting.pop()
            now = time.perf_counter()
            self._engine.submit(
                Request(
                    number=planned.index,
                    tenant="bench",
                    prompt=np.array(planned.prompt_token_ids, dtype=np.int64),
                    generated=np.empty(0, dtype=np.int64),
                    max_tokens=planned.output_tokens,
                    submitted_at=now,
                )
            )
            self._planned[planned.index] = planned
            self._sent_at_s[planned.index] = now

    def _take(self, output: StepOutput, now: float) -> None:
        if output.rows is not None:
            for number in output.rows.numbers:
                self.ttft_s.setdefault(number, now - self._sent_at_s[number])
                self.num_tokens[number] = self.num_tokens.get(number, 0) + 1
        for released in output.released:
            planned = self._planned.pop(released.number)
            assert released.error is None and self.num_tokens[released.number] == planned.output_tokens, "an answer has its exact length"


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-input", type=int)
    parser.add_argument("--max-output", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    engine = load_engine(Settings(model=arguments.model, dtype=arguments.dtype, threads=arguments.threads))
    config = WorkloadConfig(
        num_requests=arguments.requests, seed=arguments.seed, max_prompt=arguments.max_input, max_output=arguments.max_output
    )
    warm_up = WorkloadConfig(num_requests=arguments.concurrency, seed=arguments.seed + 1, max_prompt=64, max_output=16)
    lengths = read_lengths(BUNDLED_LENGTHS)
    ClosedLoop(engine, make_workload(warm_up, lengths, vocab_size=engine.logits_width), arguments.concurrency).run()
    loop = ClosedLoop(engine, make_workload(config, lengths, vocab_size=engine.logits_width), arguments.concurrency)
    seconds = loop.run()
    tokens = sum(loop.num_tokens.values())
    ttft_ms = sorted(value * 1000 for value in loop.ttft_s.values())
    json.dump({"output_tokens_per_s": tokens / seconds, "ttft_ms_p50": statistics.median(ttft_ms), "output_tokens": tokens}, sys.stdout)


if __name__ == "__main__":
    main()
