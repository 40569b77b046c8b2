"""Simulated time: requests arrive, a server computes steps, and each step takes what the cost model says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from compute_svc.simulator.cost_model import CostModel, StepWork
from compute_svc.simulator.workload import Workload
from compute_svc.wire.request import Request

Seconds = npt.NDArray[np.float64]


@dataclass(slots=True)
class StepEvents:
    """What a step does besides taking time; all of it happens at the step's end.

    Attributes:
        work: What it computes.
        num_tokens: Answer tokens it gives.
        started: Numbers of the requests that get their first token.
        ended: (number, answer tokens of it all) of the requests whose answer is complete.
    """

    work: StepWork
    num_tokens: int = 0
    started: list[int] = field(default_factory=list)
    ended: list[tuple[int, int]] = field(default_factory=list)


class Server(Protocol):
    """Whoever decides what a step computes."""

    def submit(self, request: Request) -> None:
        """A request has arrived."""

    def step(self, now: float) -> StepEvents | None:
        """The next step, computed; None if there is nothing to compute until another request arrives."""


class Outcome(NamedTuple):
    """When each request got what.

    Attributes:
        workload: What was asked.
        first_token_s: [n] float64, on the workload's clock.
        end_s: [n] float64.
        answer_tokens: [n] int64, what the server gave.
        num_steps: Steps computed.
        num_step_tokens: Answer tokens that the steps gave, counted step by step.
    """

    workload: Workload
    first_token_s: Seconds
    end_s: Seconds
    answer_tokens: npt.NDArray[np.int64]
    num_steps: int
    num_step_tokens: int

    def require_exact(self) -> None:
        """Checks that every request got exactly its tokens, in order.

        Raises:
            ValueError: One did not.
        """
        wrong = np.flatnonzero(self.answer_tokens != self.workload.answer_tokens)
        if wrong.size:
            raise ValueError(f"request {wrong[0]} got {self.answer_tokens[wrong[0]]} tokens of {self.workload.answer_tokens[wrong[0]]}")
        if self.num_step_tokens != int(self.workload.answer_tokens.sum()):
            raise ValueError(f"the steps gave {self.num_step_tokens} tokens, {self.workload.answer_tokens.sum()} were wanted")
        if not ((self.workload.arrivals_s < self.first_token_s) & (self.first_token_s <= self.end_s)).all():
            raise ValueError("a token came before its time")

    @property
    def latency_s(self) -> Seconds:
        """[n], from arrival to the last token."""
        return self.end_s - self.workload.arrivals_s

    @property
    def ttft_s(self) -> Seconds:
        """[n], from arrival to the first token."""
        return self.first_token_s - self.workload.arrivals_s

    @property
    def normalized_latency_s(self) -> Seconds:
        """[n], latency for each answer token."""
        return self.latency_s / self.workload.answer_tokens

    @property
    def requests_per_s(self) -> float:
        """Requests answered for each second from the first arrival to the last token."""
        return len(self.workload) / float(self.end_s.max() - self.workload.arrivals_s[0])


def simulate(server: Server, workload: Workload, cost: CostModel) -> Outcome:
    """Runs a workload to its end.

    Raises:
        ServiceError: The server refuses a request.
    """
    arrivals = workload.arrivals_s.tolist()
    first_token_s, end_s = np.full(len(workload), np.nan), np.full(len(workload), np.nan)
    answer_tokens = np.zeros(len(workload), dtype=np.int64)
    now, arrived, num_steps, num_step_tokens = 0.0, 0, 0, 0
    while True:
        while arrived < len(arrivals) and arrivals[arrived] <= now:
            server.submit(workload.request(arrived))
            arrived += 1
        events = server.step(now)
        if events is None:
            if arrived == len(arrivals):
                return Outcome(workload, first_token_s, end_s, answer_tokens, num_steps, num_step_tokens)
            now = arrivals[arrived]
            continue
        now += cost.seconds(events.work)
        num_steps += 1
        num_step_tokens += events.num_tokens
        for number in events.started:
            first_token_s[number] = now
        for number, tokens in events.ended:
            end_s[number] = now
            answer_tokens[number] = tokens
