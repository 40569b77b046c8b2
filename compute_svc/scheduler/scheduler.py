"""The scheduler: decodes first, then chunks of prompts, under one token budget."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Callable
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from compute_svc.scheduler.base import MAX_READ_TOKENS, Chunk, Failure, Phase, Plan, PlanFailed, RequestState, SchedulerConfig
from compute_svc.scheduler.batch_slots import Rows
from compute_svc.scheduler.followers import Followers
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.length_predictor import LengthPredictor
from compute_svc.scheduler.policies.first_come import FirstComeFirstServed
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy
from compute_svc.scheduler.request_limits import require_possible
from compute_svc.wire.request import Request
from triserve.rpc.errors import DeadlineExceeded, Overloaded

_RANK = attrgetter("rank")


class Scheduler:
    """Waiting, running and preempted requests, and the pages they hold.

    A request is admitted when there are pages for all its known tokens, or where it slides for as many as it ever holds, and one more for
    each running request; it then grows page by page. It is blocked while one of better rank computes a part of its prompt. When there
    is no page left, the running request of the highest rank gives up its own and is computed again later. So the one of the lowest rank
    always proceeds; that everyone becomes that one at last is the policy's promise. First come, first served ranks by arrival. A policy
    may also have running requests give up their place for one that waits, and one that is paused gives up its own for any that finds none.

    Args:
        config: Sizes.
        policy: The order of service, one of its own; None = first come, first served.
        predictor: Of the lengths of answers; None = max_tokens is expected.
        make_memory: Makes the KV memory: how pages are reserved.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        policy: Policy | None = None,
        predictor: LengthPredictor | None = None,
        make_memory: Callable[[SchedulerConfig], KvMemory] = KvMemory,
    ) -> None:
        self.config = config
        self.memory = make_memory(config)
        self.followers = Followers(self.memory.tree, config.page_size_tokens)
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self._policy = policy or FirstComeFirstServed()
        self._policy.cached_tokens = self._count_cached
        self._predictor = predictor
        self._states: dict[int, RequestState] = {}
        # Waiting and preempted ones that left the queue because the next step cannot have them.
        self._blocked: dict[int, RequestState] = {}
        # In the order of rank, and their batch slots; None = that is to be found again.
        self._running: list[RequestState] = []
        self._order: Rows | None = None
        self._deadlines: list[tuple[float, int]] = []
        self._arrivals = 0
        # Of the last step.
        self._now = 0.0
        # The request that last found no room and the memory's count of returns at that time.
        self._refused: tuple[int, int] | None = None

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for admission, preempted ones among them."""
        return len(self._states) - len(self._running)

    @property
    def next_deadline(self) -> float | None:
        """When the next request's time is over, on the caller's clock; None = never. May belong to one that has left."""
        return self._deadlines[0][0] if self._deadlines else None

    @property
    def running(self) -> list[RequestState]:
        """Requests in the batch, in the order of rank."""
        return list(self._running)

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
        require_possible(request, self.config.max_request_tokens)
        if len(self._states) >= self.config.max_waiting_requests + self.config.max_running_requests:
            raise Overloaded(f"{self.num_waiting} requests are waiting, the limit is {self.config.max_waiting_requests}")
        assert request.number not in self._states, "a number is used once"
        self._arrivals += 1
        state = RequestState(request, self._arrivals)
        if self._predictor is not None:
            state.predicted_tokens = self._predictor.predict(request)
        self._states[request.number] = state
        self._policy.enter(state, Enter.ARRIVED, request.submitted_at)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.number))
        return state

    def release(self, number: int) -> RequestState | None:
        """Ends a request wherever it is; its pages are free when this returns.

        Returns:
            The request; None if it has left before.
        """
        state = self._remove(number)
        if state is not None and self._predictor is not None and state.position > 0:
            self._predictor.observe(state.request, state.position)
        return state

    def fail(self, number: int, *, num_trusted: int | None = None) -> RequestState | None:
        """As `release`, for a request that has not come to its end: its length says nothing, and its KV may be wrong.

        Args:
            number: Of the request.
            num_trusted: How many of its first pages the prefix cache may keep; None = all that it has.
        """
        return self._remove(number, num_trusted)

    def _remove(self, number: int, num_trusted: int | None = None) -> RequestState | None:
        state = self._states.pop(number, None)
        if state is None:
            return None
        if state.phase is Phase.RUNNING:
            self._running.remove(state)
            self._stop(state, num_trusted)
        else:
            self._blocked.pop(number, None)
            self.followers.stop(state)
        state.phase = Phase.ENDED
        self._policy.leave(state, Leave.ENDED, self._now)
        return state

    def _stop(self, state: RequestState, num_trusted: int | None = None) -> None:
        """Takes pages and slot of a request that is not in the list of running ones any more."""
        self._order = None
        self.followers.stop(state)
        self.memory.leave(state, num_trusted=num_trusted)

    def step(self, now: float) -> Plan:
        """Chooses what to compute next.

        Args:
            now: Seconds on the caller's clock.

        Effects: ends requests whose deadline is over, admits, preempts; the tokens of the plan count as computed only after
            `complete`.

        Raises:
            PlanFailed: It came to an error; who runs has to go.
        """
        self._now = now
        plan = Plan(failures=self._expire(now))
        try:
            self._return_unblocked(now)
            prefilling = self._plan_decodes(plan, now)
            self._plan_prefills(prefilling, plan, now)
        except Exception as error:
            raise PlanFailed(plan.failures) from error
        return plan

    def complete(self, plan: Plan) -> None:
        """Counts the tokens of a plan as computed; their KV is in its pages now."""
        self.memory.slots.num_computed[plan.rows] += 1
        for chunk in plan.prefills:
            chunk.state.num_computed += chunk.length
            self.memory.keep_computed(chunk.state)
            self.followers.lead(chunk.state)
        if self.config.slides:
            for state in (*plan.decodes, *(chunk.state for chunk in plan.prefills)):
                self.memory.slide(state)
        if self._policy.account(plan):
            self._running.sort(key=_RANK)
            self._order = None

    def accept(self, rows: Rows, tokens: npt.NDArray[np.int64]) -> Rows:
        """Adds a drawn token to each of some running requests; who ends is still to be released.

        Args:
            rows: [n] batch slots, none twice.
            tokens: [n].

        Returns:
            Indices into `rows` of those that end with it: by max_tokens, or by a stop id where min_tokens are there.
        """
        return self.memory.slots.accept(rows, tokens)

    def make_room(self, state: RequestState, tokens: list[int]) -> list[int]:
        """Of tokens that are to be added to a request, whose others are all computed, those that have room for their KV; at least one."""
        count = min(len(tokens), state.request.max_tokens - state.position)
        if count > 1 and state.phase is Phase.RUNNING:
            count = max(1, self.memory.make_room(state, count))
        if count > 1:
            # As a part of a prompt is.
            state.prefill_end = state.num_tokens + count
        return tokens[:count]

    def assert_consistent(self) -> None:
        """Checks ownership of all pages and that each request is in exactly one place."""
        self.memory.assert_owned_once(self._running)
        running = {number: state for number, state in self._states.items() if state.phase is Phase.RUNNING}
        assert running == {state.request.number: state for state in self._running} and len(running) == len(self._running), (
            "who runs is listed"
        )
        assert self._running == sorted(self._running, key=_RANK), "running requests are in the order of rank"
        assert self._order is None or self._order.tolist() == _slots_of(self._running).tolist(), "so are their slots"
        assert self._blocked.items() <= self._states.items() and not self._blocked.keys() & running.keys(), "who is blocked is not running"
        for state in self._running:
            assert state.table is not None and state.table.shared <= state.table.length
            assert state.kv_length <= state.table.length * self.config.page_size_tokens

    def _expire(self, now: float) -> list[Failure]:
        failures = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number = heapq.heappop(self._deadlines)
            state = self.release(number)
            if state is not None:
                failures.append(Failure(state, DeadlineExceeded("the request's time is over")))
        return failures

    def _count_cached(self, state: RequestState) -> int:
        return self.memory.tree.match_length(state.request.tenant, state.tokens[: state.reusable_tokens])

    def _return_unblocked(self, now: float) -> None:
        for state in [state for state in self._blocked.values() if not (state.is_blocked or self.followers.waits(state))]:
            del self._blocked[state.request.number]
            self._policy.enter(state, Enter.UNBLOCKED, now)

    def _plan_decodes(self, plan: Plan, now: float) -> list[RequestState]:
        """Adds all decode rows; returns those whose prompt is not computed, some of which may have been preempted since."""
        slots = self.memory.slots
        rows, prefilling = slots.split(self._slots())
        prompts = [slots.states[slot] for slot in prefilling.tolist()]
        full = rows[slots.kv_lengths(rows) >= self.memory.tables.lengths[rows] * self.config.page_size_tokens]
        if not self.memory.grow_all(full):
            # Growing may preempt: always from the end of the order, at worst the request itself, never one that has grown before.
            for state in [slots.states[slot] for slot in full.tolist()]:
                while state is not None and state.phase is Phase.RUNNING and not self.memory.grow(state):
                    self._preempt_last(now)
        decodes = [slots.states[slot] for slot in rows.tolist()]
        if self._order is None:
            rows = rows[[state is not None for state in decodes]]
        plan.rows, plan.decodes = rows, [state for state in decodes if state is not None]
        return [state for state in prompts if state is not None]

    def _slots(self) -> Rows:
        """[n] batch slots of the running requests, in the order of rank."""
        if self._order is None:
            self._order = _slots_of(self._running)
        return self._order

    def _preempt_last(self, now: float) -> None:
        self._preempt(self._running[-1], now)

    def _preempt_paused(self, now: float) -> bool:
        """Preempts the request of the highest rank among those whose sampler is behind; whether there was one.

        Places and pages are for who goes on; what it has computed waits in the prefix cache.
        """
        paused = self._paused()
        if not paused.size:
            return False
        state = self.memory.slots.states[int(paused[-1])]
        assert state is not None, "who runs has a slot"
        self._preempt(state, now)
        return True

    def _paused(self) -> Rows:
        """[n] batch slots of running requests whose sampler is behind, in the order of rank."""
        return self.memory.slots.paused_of(self._slots())

    def _preempt(self, state: RequestState, now: float) -> None:
        self._running.remove(state)
        self._stop(state)
        state.phase = Phase.PREEMPTED
        state.preemptions += 1
        self.num_preemptions += 1
        self._policy.enter(state, Enter.PREEMPTED, now)

    def _plan_prefills(self, prefilling: list[RequestState], plan: Plan, now: float) -> None:
        if self._policy.preempts and len(plan.decodes) == self.config.step_budget_tokens:
            candidate = self._next_to_admit(now)
            if candidate is not None:
                self._make_way(candidate, plan, now)
        budget = self.config.step_budget_tokens - len(plan.decodes)
        for state in prefilling:
            if self._policy.overtakes:
                budget = self._admit_all(plan, now, budget, before=state)
            if not budget:
                return
            # It may have lost its pages or made way just now.
            if state.phase is Phase.RUNNING:
                budget = self._add_chunk(plan.prefills, state, budget)
        self._admit_all(plan, now, budget)

    def _admit_all(self, plan: Plan, now: float, budget: int, before: RequestState | None = None) -> int:
        """Admits requests while there is room for them, those that come before a running one if there is one; returns what is left."""
        while budget and (len(self._running) < self.config.max_running_requests or self._policy.preempts or self._paused().size):
            candidate = self._next_to_admit(now)
            if candidate is None or (before is not None and candidate.rank >= before.rank):
                break
            if self._admit(candidate, plan, now):
                budget = self._add_chunk(plan.prefills, candidate, budget)
            elif self._make_way(candidate, plan, now):
                budget = self.config.step_budget_tokens - plan.num_tokens
            elif not self._preempt_paused(now):
                break
        return budget

    def _next_to_admit(self, now: float) -> RequestState | None:
        while (state := self._policy.first(now)) is not None and (state.is_blocked or self._follows(state)):
            self._policy.leave(state, Leave.BLOCKED, now)
            self._blocked[state.request.number] = state
        return state

    def _follows(self, state: RequestState) -> bool:
        """Whether a request is served best by waiting for another that computes what it needs too; no more wait so than can run."""
        if (state.request.number, self.memory.num_returns) == self._refused or len(self._blocked) >= self.config.max_running_requests:
            return False
        return self.followers.find_leader(state) is not None

    def _make_way(self, candidate: RequestState, plan: Plan, now: float) -> bool:
        """Preempts the running request of the highest rank if the policy wants that and it helps; it leaves the plan."""
        last = self._running[-1] if self._running else None
        if last is None or last.rank < candidate.rank or not self._policy.yields(last, candidate):
            return False
        if not self._may_fit(candidate):
            return False
        self._preempt_last(now)
        plan.rows = plan.rows[[state is not last for state in plan.decodes]]
        plan.decodes = [state for state in plan.decodes if state is not last]
        plan.prefills = [chunk for chunk in plan.prefills if chunk.state is not last]
        return True

    def _may_fit(self, candidate: RequestState) -> bool:
        """Whether a waiting request could have pages enough if all running ones that yield to it were preempted."""
        yielding: list[RequestState] = []
        for state in reversed(self._running):
            if state.rank < candidate.rank or not self._policy.yields(state, candidate):
                break
            yielding.append(state)
        return self.memory.could_admit(candidate, without=yielding, headroom=len(self._running) - len(yielding))

    def _admit(self, state: RequestState, plan: Plan, now: float) -> bool:
        if len(self._running) >= self.config.max_running_requests:
            return False
        # What is available only shrinks until somebody returns pages, so a long prompt is not matched again at every step.
        attempt = (state.request.number, self.memory.num_returns)
        if attempt == self._refused:
            return False
        if self._predictor is not None and state.phase is Phase.WAITING:
            # Of a burst that came at once, answers may have ended since.
            state.predicted_tokens = self._predictor.predict(state.request)
        if not self.memory.admit(state, headroom=len(self._running)):
            self._refused = attempt
            return False
        self._policy.leave(state, Leave.ADMITTED, now)
        if state.phase is Phase.WAITING:
            state.admitted_at = now
            state.cached_tokens = min(state.num_computed, state.request.prompt.size)
            self.num_cached_tokens += state.cached_tokens
            plan.admitted.append(state)
        state.phase = Phase.RUNNING
        state.prefill_end = state.num_tokens
        insort(self._running, state, key=_RANK)
        self._order = None
        self.followers.lead(state)
        return True

    def _add_chunk(self, chunks: list[Chunk], state: RequestState, budget: int) -> int:
        """Adds as much of a request's prompt as the budget holds; returns what is left of the budget.

        Of a prompt that is told of token by token, no more than what is left of `MAX_READ_TOKENS`, which may be nothing in this step.
        """
        assert state.table is not None, "a running request has a page table"
        length = min(budget, state.prefill_end - state.num_computed)
        if state.unread:
            room = MAX_READ_TOKENS - sum(chunk.num_told for chunk in chunks)
            if Chunk(state, state.num_computed, length).num_told > room:
                length = state.unread.start + room - state.num_computed
            if not length:
                return budget
        assert 0 < length <= state.table.length * self.config.page_size_tokens - state.kv_length, "what slides has room for a step"
        chunks.append(Chunk(state, state.num_computed, length))
        return budget - length


def _slots_of(states: list[RequestState]) -> Rows:
    return np.array([state.table.row for state in states if state.table is not None], dtype=np.int64)
