"""Who can be simulated: this engine's scheduler, and what others did before."""

from __future__ import annotations

from collections import deque

import numpy as np

from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.scheduler.length_predictor import LengthPredictor
from compute_svc.scheduler.policies.policy import Policy
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.simulator.cost_model import StepWork
from compute_svc.simulator.simulation import StepEvents
from compute_svc.wire.request import Request
from triserve.rpc.errors import PromptTooLong


class ScheduledServer:
    """The engine's own scheduler with an engine that draws every token at once.

    Args:
        config: Sizes.
        policy: As the scheduler's.
        predictor: As the scheduler's.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy | None = None, predictor: LengthPredictor | None = None) -> None:
        self.scheduler = Scheduler(config, policy, predictor)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            PromptTooLong: It can never fit.
            Overloaded: The queue is full.
        """
        self.scheduler.submit(request)

    def step(self, now: float) -> StepEvents | None:
        """Plans, counts and answers one step."""
        scheduler = self.scheduler
        plan = scheduler.step(now)
        if plan.is_empty:
            return None
        prefill_tokens = context = 0
        started: list[int] = []
        for chunk in plan.prefills:
            prefill_tokens += chunk.length
            context += chunk.start
            if chunk.completes and chunk.state.num_tokens == chunk.state.num_given:
                started.append(chunk.state.request.number)
        states, rows = plan.wanted, plan.wanted_rows
        scheduler.complete(plan)
        # The token that a row computes is not its context.
        context += int(scheduler.memory.slots.num_computed[plan.rows].sum()) - len(plan.decodes)
        # Every token is zero.
        done = [states[index] for index in scheduler.accept(rows, np.zeros(len(rows), dtype=np.int64)).tolist()]
        ended = [(state.request.number, state.position) for state in done]
        for number, _ in ended:
            scheduler.release(number)
        return StepEvents(StepWork(len(plan.decodes), prefill_tokens, context), len(rows), started, ended)


class _Answer:
    """A request and how far it is."""

    __slots__ = ("given", "number", "prompt", "wanted")

    def __init__(self, request: Request) -> None:
        self.number = request.number
        self.prompt = int(request.prompt.size)
        self.wanted = request.max_tokens
        self.given = 0

    @property
    def context(self) -> int:
        return self.prompt + self.given - 1


class StaticBatchingServer:
    """Static batching, as FasterTransformer's: a batch of those that wait is computed until its longest answer ends, and answered then.

    Requests that have ended keep their rows, padding included in the price; prompts are computed together and are not padded. KV is
    no limit.

    Args:
        max_batch_requests: Most requests of a batch.

    Raises:
        ValueError: It is below 1.
    """

    def __init__(self, max_batch_requests: int) -> None:
        if max_batch_requests < 1:
            raise ValueError(f"max_batch_requests is {max_batch_requests}, it must be at least 1")
        self._max_batch_requests = max_batch_requests
        self._waiting: deque[_Answer] = deque()
        self._batch: list[_Answer] = []
        self._steps_left = 0

    def submit(self, request: Request) -> None:
        """Queues a request."""
        self._waiting.append(_Answer(request))

    def step(self, now: float) -> StepEvents | None:
        """The prompts of a new batch, or one token of all its requests."""
        if not self._batch:
            if not self._waiting:
                return None
            size = min(self._max_batch_requests, len(self._waiting))
            self._batch = [self._waiting.popleft() for _ in range(size)]
            self._steps_left = max(answer.wanted for answer in self._batch)
            events = StepEvents(StepWork(0, sum(answer.prompt for answer in self._batch), 0))
        else:
            context = sum(answer.context for answer in self._batch)
            events = StepEvents(StepWork(len(self._batch), 0, context))
        for answer in self._batch:
            if answer.given < answer.wanted:
                answer.given += 1
                events.num_tokens += 1
        self._steps_left -= 1
        if not self._steps_left:
            events.started = [answer.number for answer in self._batch]
            events.ended = [(answer.number, answer.given) for answer in self._batch]
            self._batch = []
        return events


class StopTheWorldServer:
    """Iteration-level batching with prompts apart: whenever one waits and there is a place, it is computed whole and alone.

    Answers under way wait meanwhile. A place needs KV for prompt and whole answer, whose length is known here: more than a real server has.

    Args:
        max_running_requests: Most requests that decode together.
        kv_tokens: Tokens of KV in all.
    """

    def __init__(self, max_running_requests: int, kv_tokens: int) -> None:
        self._max_running_requests = max_running_requests
        self._kv_tokens = self._kv_tokens_left = kv_tokens
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            PromptTooLong: It can never fit.
        """
        tokens = request.prompt.size + request.max_tokens
        if tokens > self._kv_tokens:
            raise PromptTooLong.of(got=tokens, limit=self._kv_tokens, field="token_ids")
        self._waiting.append(_Answer(request))

    def step(self, now: float) -> StepEvents | None:
        """One whole prompt, or one token of all running requests."""
        if self._waiting and self._fits(self._waiting[0]):
            answer = self._waiting.popleft()
            self._kv_tokens_left -= answer.prompt + answer.wanted
            self._running.append(answer)
            events = StepEvents(StepWork(0, answer.prompt, 0), started=[answer.number])
            computed = [answer]
        elif self._running:
            events = StepEvents(StepWork(len(self._running), 0, sum(answer.context for answer in self._running)))
            computed = self._running
        else:
            return None
        for answer in computed:
            answer.given += 1
            if answer.given == answer.wanted:
                events.ended.append((answer.number, answer.given))
                self._kv_tokens_left += answer.prompt + answer.wanted
        events.num_tokens = len(computed)
        self._running = [answer for answer in self._running if answer.given < answer.wanted]
        return events

    def _fits(self, answer: _Answer) -> bool:
        return len(self._running) < self._max_running_requests and answer.prompt + answer.wanted <= self._kv_tokens_left
