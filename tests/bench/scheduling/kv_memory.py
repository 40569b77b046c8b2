"""What three ways to reserve KV pages make of one memory budget: pages for max_tokens, one page at a time, room for the predicted answer.

The real scheduler plans the requests of the lengths file, one plan per step and without a model: tokens are made up, and what would be
their KV is a number per slot, so that every page table can be checked against what was written. Requests wait as long as some remain.

Three cases. In two of them the pool is the bottleneck, and clients differ: they leave max_tokens at the most the model allows, as those do who
do not know how long the answer will be (it is the servers' default as well), or they guess it as the next power of two above its true
length, which is better than clients can. The true length ends the answer in both. In the third the size of the batch is the bottleneck, so
that the prefix cache fills the rest of the pool, and conversations come back for a second turn: it shows the extents of an ordinary
day and what they cost the cache.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import random
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compute_svc.kv.page_table import PageTable
from compute_svc.scheduler.base import Plan, RequestState, SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.length_predictor import WindowedLengthPredictor
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory, count_extents
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from gateway.cli.hardware import describe_hardware
from gateway.cli.measuring.workload import BUNDLED_LENGTHS, PlannedRequest, WorkloadConfig, make_workload, read_lengths

RESULTS = Path(__file__).parents[1] / "results" / "kv_memory.json"
VOCAB_SIZE = 32_000
MEMORIES: dict[str, Callable[[SchedulerConfig], KvMemory]] = {"MAXIMUM": MaximumMemory, "PAGES": KvMemory, "PREDICTED": PredictedMemory}
# Tokens of a second turn's question.
FOLLOW_UP_TOKENS = 20


class Case(NamedTuple):
    """What is run in every way to reserve.

    Attributes:
        name: For the results.
        guesses: Whether clients guess max_tokens instead of leaving it at the most there is.
        max_running_requests: Size of the batch.
        returns: Whether conversations have a second turn.
    """

    name: str
    guesses: bool
    max_running_requests: int
    returns: bool


@dataclass
class Tally:
    """What was seen, step by step and answer by answer."""

    running: list[int] = field(default_factory=list)
    waste_percent: list[float] = field(default_factory=list)
    waste_percent_owned: list[float] = field(default_factory=list)
    extents: list[int] = field(default_factory=list)
    expected_enough: list[bool] = field(default_factory=list)


class Run:
    """One case with one way to reserve."""

    def __init__(
        self,
        case: Case,
        config: SchedulerConfig,
        make_memory: Callable[[SchedulerConfig], KvMemory],
        planned: Sequence[PlannedRequest],
        queue: int,
    ) -> None:
        self._case = case
        self._config = config
        self._planned = {one.index: one for one in planned}
        self._turns = len(planned)
        self._arrivals = deque(planned)
        self._queue = queue
        self._scheduler = Scheduler(config, predictor=WindowedLengthPredictor(), make_memory=make_memory)
        self._slots = np.full((config.num_pages, config.page_size_tokens), -1, dtype=np.int64)
        self._live: dict[int, RequestState] = {}
        self._ended: dict[int, int] = {}
        self._steps = 0
        # A heap of conversations that come back: how many answers must have ended, the request's number, the request.
        self._returning: list[tuple[int, int, PlannedRequest]] = []
        self.tally = Tally()

    def finish(self) -> dict[str, Any]:
        """Runs until every request has ended; returns the figures."""
        while len(self._ended) < len(self._planned):
            while self._arrivals and self._scheduler.num_waiting < self._queue:
                self._submit(self._arrivals.popleft())
            plan = self._scheduler.step(float(self._steps))
            assert not plan.is_empty and not plan.failures, "the run goes on"
            self._compute(plan)
            self._steps += 1
            if self._steps % 64 == 0:
                self._scheduler.assert_consistent()
        self._scheduler.assert_consistent()
        assert not self._arrivals and self._scheduler.memory.num_available == self._config.num_pages, "nothing has leaked"
        assert self._ended == {number: one.output_tokens for number, one in self._planned.items()}, "each answer has its exact length"
        return self._figures()

    def _submit(self, planned: PlannedRequest) -> None:
        room = self._config.max_request_tokens - len(planned.prompt_token_ids)
        guess = 1 << (planned.output_tokens - 1).bit_length()
        max_tokens = min(room, guess) if self._case.guesses else room
        prompt = np.array(planned.prompt_token_ids, dtype=np.int64)
        request = Request(planned.index, "", prompt, np.empty(0, np.int64), max_tokens, float(self._steps))
        self._live[planned.index] = self._scheduler.submit(request)

    def _compute(self, plan: Plan) -> None:
        for state in plan.decodes:
            self._write(state, state.num_computed, 1)
        for chunk in plan.prefills:
            self._write(*chunk)
        self._scheduler.complete(plan)
        self._observe()
        for state in [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]:
            state.append((state.request.number * 7919 + state.position) % VOCAB_SIZE)
            if state.position == self._planned[state.request.number].output_tokens:
                self._end(state)

    def _write(self, state: RequestState, start: int, length: int) -> None:
        positions = np.arange(start, start + length)
        pages = self._scheduler.memory.tables.entries[_table(state).row, positions // self._config.page_size_tokens]
        self._slots[pages, positions % self._config.page_size_tokens] = state.tokens[positions]

    def _end(self, state: RequestState) -> None:
        table, number = _table(state), state.request.number
        pages = self._scheduler.memory.tables.entries[table.row, : table.length]
        stored = self._slots[pages].reshape(-1)[: state.num_computed]
        assert (stored == state.tokens[: state.num_computed]).all(), "a request's pages hold its own tokens"
        self.tally.extents.append(count_extents(pages[: -(-state.num_computed // self._config.page_size_tokens)]))
        self.tally.expected_enough.append(state.position <= state.predicted_tokens)
        self._ended[number] = state.position
        del self._live[number]
        self._scheduler.release(number)
        if self._case.returns:
            self._bring_back(state)

    def _bring_back(self, state: RequestState) -> None:
        """Lets a conversation have a second turn after some other answers: none to four times the batch, evenly spread."""
        number, known = state.request.number, state.tokens[: state.num_tokens].tolist()
        length = len(known) + FOLLOW_UP_TOKENS + self._planned[number].output_tokens
        if number < self._turns and length < self._config.max_request_tokens:
            question = [(number + index) % VOCAB_SIZE for index in range(FOLLOW_UP_TOKENS)]
            second = PlannedRequest(number + self._turns, 0.0, known + question, self._planned[number].output_tokens)
            self._planned[second.index] = second
            due = len(self._ended) + random.Random(number).randrange(4 * self._case.max_running_requests)
            heapq.heappush(self._returning, (due, second.index, second))
        while self._returning and (self._returning[0][0] <= len(self._ended) or not self._live):
            self._arrivals.appendleft(heapq.heappop(self._returning)[2])

    def _observe(self) -> None:
        running = [state for state in self._live.values() if state.table is not None]
        used = sum(state.num_computed for state in running)
        owned = sum(_table(state).length for state in running) * self._config.page_size_tokens
        memory = self._scheduler.memory
        rooms = sum(memory.room(state).size for state in running) if isinstance(memory, PredictedMemory) else 0
        reserved = owned + rooms * self._config.page_size_tokens
        self.tally.running.append(len(running))
        self.tally.waste_percent.append(100 * (1 - used / reserved))
        self.tally.waste_percent_owned.append(100 * (1 - used / owned))

    def _figures(self) -> dict[str, Any]:
        tally = self.tally
        return {
            "waste_percent": round(statistics.mean(tally.waste_percent), 2),
            "waste_percent_without_room": round(statistics.mean(tally.waste_percent_owned), 2),
            "extents_per_request": round(statistics.mean(tally.extents), 2),
            "in_one_extent_percent": round(100 * tally.extents.count(1) / len(tally.extents), 1),
            "running_requests": round(statistics.mean(tally.running), 1),
            "steps": self._steps,
            "preemptions": self._scheduler.num_preemptions,
            "cached_tokens": self._scheduler.num_cached_tokens,
            "predicted_enough_percent": round(100 * statistics.mean(tally.expected_enough), 1),
            "requests": len(self._ended),
        }


def _table(state: RequestState) -> PageTable:
    assert state.table is not None, "a running request has a page table"
    return state.table


def _check_claims(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What paging promises against a reservation of the maximum, in one case."""
    maximum = figures["MAXIMUM"]
    claims: dict[str, Any] = {}
    for name in ("PAGES", "PREDICTED"):
        ratio = figures[name]["running_requests"] / maximum["running_requests"]
        waste = figures[name]["waste_percent"]
        claims[name] = {
            "admitted_of_maximum": round(ratio, 2),
            "steps_of_maximum": round(figures[name]["steps"] / maximum["steps"], 2),
            "admits_twice_as_many": ratio >= 2,
            "wastes_under_4_percent": waste < 4,
        }
    return claims


def main() -> None:
    """Runs every case in every way and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--pages", type=int, default=2048)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--step-budget", type=int, default=2048)
    parser.add_argument("--queue", type=int, default=4, help="requests that wait; those that end are followed by others")
    parser.add_argument("--batch", type=int, default=32, help="requests that run at once where the batch is the bottleneck")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    planned = make_workload(
        WorkloadConfig(num_requests=arguments.requests, seed=arguments.seed), read_lengths(BUNDLED_LENGTHS), vocab_size=VOCAB_SIZE
    )
    cases = (
        Case("pool is the bottleneck, max_tokens is the model's limit", False, arguments.step_budget, False),
        Case("pool is the bottleneck, max_tokens is the next power of two", True, arguments.step_budget, False),
        Case("batch is the bottleneck, second turns, max_tokens is the model's limit", False, arguments.batch, True),
    )
    results = []
    for case in cases:
        config = SchedulerConfig(
            page_size_tokens=arguments.page_size,
            num_pages=arguments.pages,
            max_model_len_tokens=arguments.max_model_len,
            step_budget_tokens=arguments.step_budget,
            max_running_requests=case.max_running_requests,
            max_waiting_requests=arguments.queue + arguments.requests,
        )
        figures = {}
        for name, make_memory in MEMORIES.items():
            figures[name] = Run(case, config, make_memory, planned, arguments.queue).finish()
            print(f"{case.name}: {name} {figures[name]}", flush=True)
        claims = None if case.returns else _check_claims(figures)
        results.append({"case": case.name, "figures": figures, "claims": claims})
        print(f"{case.name}: claims {claims}", flush=True)
    document = {
        "what": "KV pages: waste (reserved and not used, mean over steps), extents and running requests of three ways to reserve",
        "triserve": version("triserve"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "lengths": BUNDLED_LENGTHS.name,
        "results": results,
    }
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
