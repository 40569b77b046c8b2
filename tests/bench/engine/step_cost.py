"""What a step costs the host: the engine alone, with a model that costs nothing, at several sizes of the batch.

Every request decodes greedily and none ends while steps are timed, so a step is: plan the rows, build the batch, take in the tokens, tell what
happened. Processor time of the one thread, medians over steps. Others on the machine cost it caches all the same: the load is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from compute_svc.engine.engine import Engine
from compute_svc.engine.steps.batch_builder import BatchBuilder
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request

SIZES = (1, 16, 64, 256)
WIDTH = 64
PROMPT_TOKENS = 100


class FreeModel:
    """The same logits for every row, made once."""

    def __init__(self, num_rows: int) -> None:
        self._logits = torch.zeros((num_rows, WIDTH))
        self._logits[:, 7] = 1

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """Computes nothing."""
        return self._logits[: len(batch.logit_rows)]


def _answer_tokens(num_steps: int) -> int:
    """More than are drawn: while prompts are computed those that have begun go on."""
    return num_steps + SIZES[-1]


def _config(num_requests: int, num_steps: int) -> SchedulerConfig:
    tokens = PROMPT_TOKENS + _answer_tokens(num_steps)
    return SchedulerConfig(
        page_size_tokens=16,
        num_pages=num_requests * (tokens // 16 + 2),
        max_model_len_tokens=tokens,
        step_budget_tokens=max(512, num_requests),
        max_running_requests=num_requests,
        max_waiting_requests=num_requests,
    )


def _requests(num_requests: int, max_tokens: int) -> list[Request]:
    generator = np.random.default_rng(0)
    none = np.empty(0, np.int64)
    return [
        Request(number, "", generator.integers(10, WIDTH, PROMPT_TOKENS), none, max_tokens, 0.0, stop_token_ids=frozenset({1, 2}))
        for number in range(num_requests)
    ]


def _median_ms(step: Callable[[], object], num_steps: int) -> float:
    seconds = []
    for _ in range(num_steps):
        began = time.thread_time()
        step()
        seconds.append(time.thread_time() - began)
    return statistics.median(seconds) * 1e3


def engine_ms(num_requests: int, num_steps: int) -> float:
    """A step of the whole engine."""
    config = _config(num_requests, num_steps)
    kv = KvPageStore(1, config.num_pages, 16, 1, 1, torch.float32, torch.device("cpu"))
    engine = Engine(FreeModel(num_requests), kv, config, logits_width=WIDTH, device=torch.device("cpu"))
    for request in _requests(num_requests, _answer_tokens(num_steps)):
        engine.submit(request)
    while (output := engine.step(0.0)) is None or output.rows is None or len(output.rows.numbers) < num_requests:
        pass
    return _median_ms(lambda: engine.step(0.0), num_steps)


def scheduler_ms(num_requests: int, num_steps: int) -> float:
    """What of it is planning, building the batch, counting what was computed and taking the tokens in."""
    config = _config(num_requests, num_steps)
    scheduler = Scheduler(config)
    builder = BatchBuilder(config, scheduler.memory.slots, torch.device("cpu"))
    tokens = np.full(num_requests, 7, dtype=np.int64)
    for request in _requests(num_requests, _answer_tokens(num_steps)):
        scheduler.submit(request)

    def step() -> None:
        plan = scheduler.step(0.0)
        builder.build(plan)
        scheduler.complete(plan)
        rows = plan.wanted_rows
        scheduler.accept(rows, tokens[: len(rows)])

    while scheduler.num_running < num_requests or any(state.num_computed < state.prefill_end for state in scheduler.running):
        step()
    return _median_ms(step, num_steps)


def main() -> None:
    """Prints milliseconds a step and, above the smallest batch, microseconds for each further row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {arguments.steps} steps")
    for name, measure in (("engine", engine_ms), ("scheduler and builder", scheduler_ms)):
        first = 0.0
        for size in SIZES:
            milliseconds = measure(size, arguments.steps)
            first = first or milliseconds
            row = "" if size == 1 else f"  {(milliseconds - first) / (size - 1) * 1e3:6.2f} us/row"
            print(f"{name:22s} {size:4d} rows  {milliseconds:7.3f} ms{row}", flush=True)


if __name__ == "__main__":
    main()
