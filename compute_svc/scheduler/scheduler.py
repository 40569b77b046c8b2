"""The scheduler: decodes first, then chunks of prompts, under one token budget."""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict

from compute_svc.request import Request
from compute_svc.scheduler.base import Chunk, Failure, FirstComeFirstServed, LengthPredictor, Phase, Plan, Policy, RequestState, SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong


def _arrival(state: RequestState) -> int:
    return state.arrival


class Scheduler:
    """Waiting, running and preempted requests, and the pages they hold.

    A request is admitted when there are pages for all its known tokens and one more for each running request; it then grows page by
    page. When there is no page left, the running request that arrived last gives up its own and is computed again later. So the
    one that arrived first always proceeds, and everyone becomes the first at last.

    Args:
        config: Sizes.
        policy: The order of admission.
        predictor: Of the lengths of answers; None = max_tokens is expected.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy | None = None, predictor: LengthPredictor | None = None) -> None:
        self.config = config
        self.memory = KvMemory(config)
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self._policy = policy or FirstComeFirstServed()
        self._predictor = predictor
        self._states: dict[int, RequestState] = {}
        self._waiting: OrderedDict[int, RequestState] = OrderedDict()
        # Both in the order of arrival.
        self._running: list[RequestState] = []
        self._preempted: list[RequestState] = []
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals = 0
        # The request that last found no room and the memory's count of returns at that time.
        self._refused: tuple[int, int] | None = None

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for admission, preempted ones among them."""
        return len(self._waiting) + len(self._preempted)

    @property
    def next_deadline(self) -> float | None:
        """When the next request's time is over, on the caller's clock; None = never. May belong to one that has left."""
        return self._deadlines[0][0] if self._deadlines else None

    def find(self, number: int) -> RequestState | None:
        """The request of that number; None if it has left."""
        return self._states.get(number)

    def submit(self, request: Request) -> RequestState:
        """Puts a request in the queue.

        Raises:
            PromptTooLong: It can never fit.
            InvalidRequest: Its answer is complete already.
            Overloaded: The queue is full.
        """
        self._require_possible(request)
        room = self.config.max_waiting_requests + self.config.max_running_requests - len(self._running)
        if len(self._waiting) >= room:
            raise Overloaded(f"{len(self._waiting)} requests are waiting, the limit is {self.config.max_waiting_requests}")
        assert request.number not in self._states, "a number is used once"
        self._arrivals += 1
        state = RequestState(request, self._arrivals)
        if self._predictor is not None:
            state.predicted_tokens = self._predictor.predict(request)
        self._states[request.number] = state
        self._waiting[request.number] = state
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.number))
        return state

    def release(self, number: int) -> RequestState | None:
        """Ends a request wherever it is; its pages are free when this returns.

        Returns:
            The request; None if it has left before.
        """
        state = self._states.pop(number, None)
        if state is None:
            return None
        if state.phase is Phase.RUNNING:
            self._running.remove(state)
            self.memory.leave(state)
        elif state.phase is Phase.PREEMPTED:
            self._preempted.remove(state)
        else:
            del self._waiting[number]
        state.phase = Phase.ENDED
        if self._predictor is not None and state.position > 0:
            self._predictor.observe(state.request, state.position)
        return state

    def step(self, now: float) -> Plan:
        """Chooses what to compute next.

        Args:
            now: Seconds on the caller's clock.

        Effects: ends requests whose deadline is over, admits, preempts; the tokens of the plan count as computed only after
            `complete`.
        """
        failures = self._expire(now)
        decodes = self._plan_decodes()
        admitted: list[RequestState] = []
        prefills = self._plan_prefills(now, self.config.step_budget_tokens - len(decodes), admitted)
        return Plan(decodes, prefills, admitted, failures)

    def complete(self, plan: Plan) -> None:
        """Counts the tokens of a plan as computed; their KV is in its pages now."""
        for state in plan.decodes:
            state.num_computed += 1
        for chunk in plan.prefills:
            chunk.state.num_computed += chunk.length
            self.memory.keep_computed(chunk.state)

    def assert_consistent(self) -> None:
        """Checks ownership of all pages and that each request is in exactly one place."""
        self.memory.assert_owned_once(self._running)
        places = [*self._waiting.values(), *self._running, *self._preempted]
        assert len(places) == len(self._states) and {id(state) for state in places} == {id(state) for state in self._states.values()}
        assert self._running == sorted(self._running, key=_arrival) and self._preempted == sorted(self._preempted, key=_arrival)
        for state in self._running:
            assert state.table is not None and state.table.shared <= state.table.length
            assert state.num_computed <= state.table.length * self.config.page_size_tokens

    def _require_possible(self, request: Request) -> None:
        limit = self.config.max_request_tokens
        if request.prompt.size >= limit:
            raise PromptTooLong.of(got=request.prompt.size, limit=limit - 1, field="token_ids")
        if request.prompt.size + request.max_tokens > limit:
            raise PromptTooLong(
                f"max_tokens is {request.max_tokens}, the limit is {limit - request.prompt.size}: "
                f"prompt and answer share {limit} tokens and the prompt has {request.prompt.size}",
                field="max_tokens",
            )
        if request.generated.size >= request.max_tokens:
            raise InvalidRequest(
                f"generated_token_ids has {request.generated.size} tokens, it must have fewer than max_tokens, {request.max_tokens}",
                field="generated_token_ids",
            )

    def _expire(self, now: float) -> list[Failure]:
        failures = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            state = self.release(number)
            if state is not None:
                failures.append(Failure(state, DeadlineExceeded("the request's time is over")))
        return failures

    def _plan_decodes(self) -> list[RequestState]:
        decodes: list[RequestState] = []
        index = 0
        # Growing may preempt: always from the end of the list, at worst the request itself, never one chosen before.
        while index < len(self._running):
            state = self._running[index]
            if state.num_computed >= state.prefill_end and not state.awaiting and not state.paused and self._grow(state):
                decodes.append(state)
            index += 1
        return decodes

    def _grow(self, state: RequestState) -> bool:
        while not self.memory.grow(state):
            latest = self._running[-1]
            self._preempt(latest)
            if latest is state:
                return False
        return True

    def _preempt(self, state: RequestState) -> None:
        self._running.remove(state)
        self.memory.leave(state)
        state.phase = Phase.PREEMPTED
        state.preemptions += 1
        self.num_preemptions += 1
        insort(self._preempted, state, key=_arrival)

    def _plan_prefills(self, now: float, budget: int, admitted: list[RequestState]) -> list[Chunk]:
        chunks: list[Chunk] = []
        for state in self._running:
            if not budget:
                return chunks
            if state.num_computed < state.prefill_end and not state.is_blocked:
                budget = _add_chunk(chunks, state, budget)
        while budget and len(self._running) < self.config.max_running_requests:
            candidate = self._next_to_admit(now)
            if candidate is None or not self._admit(candidate, now, admitted):
                break
            budget = _add_chunk(chunks, candidate, budget)
        return chunks

    def _next_to_admit(self, now: float) -> RequestState | None:
        for state in self._preempted:
            if not state.is_blocked:
                return state
        return self._policy.choose(self._waiting.values(), now)

    def _admit(self, state: RequestState, now: float, admitted: list[RequestState]) -> bool:
        # What is available only shrinks until somebody returns pages, so a long prompt is not matched again at every step.
        attempt = (state.request.number, self.memory.num_returns)
        if attempt == self._refused:
            return False
        if not self.memory.admit(state, headroom=len(self._running)):
            self._refused = attempt
            return False
        if state.phase is Phase.PREEMPTED:
            self._preempted.remove(state)
        else:
            del self._waiting[state.request.number]
            state.admitted_at = now
            state.cached_tokens = min(state.num_computed, state.request.prompt.size)
            self.num_cached_tokens += state.cached_tokens
            admitted.append(state)
        state.phase = Phase.RUNNING
        state.prefill_end = state.num_tokens
        insort(self._running, state, key=_arrival)
        return True


def _add_chunk(chunks: list[Chunk], state: RequestState, budget: int) -> int:
    """Adds as much of a request's prompt as the budget holds; returns what is left of the budget."""
    length = min(budget, state.prefill_end - state.num_computed)
    chunks.append(Chunk(state, state.num_computed, length))
    return budget - length
