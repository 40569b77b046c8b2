"""The scheduler under any use with each policy: no page leaks, nobody starves, decodes come first, the budget holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from compute_svc.scheduler.base import Phase, Plan, RequestState, SchedulerConfig
from compute_svc.scheduler.kv_memory import KvMemory
from compute_svc.scheduler.policies import POLICIES
from compute_svc.scheduler.policies.fair_tenants import FairTenants
from compute_svc.scheduler.policies.longest_prefix import LongestPrefixFirst
from compute_svc.scheduler.policies.multi_level import MultiLevelFeedback
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy
from compute_svc.scheduler.policies.priority import PriorityFirst
from compute_svc.scheduler.policies.shortest_first import ShortestFirst
from compute_svc.scheduler.reservation import MaximumMemory, PredictedMemory
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.examples import examples
from triserve.rpc.errors import Overloaded

PAGE, PAGES, RUNNING = 4, 12, 3
# Small quanta and waits, so that short runs reach every branch.
VARIANTS: dict[str, Callable[[], Policy]] = {
    **POLICIES,
    "priority, 2 s a level": partial(PriorityFirst, 2.0),
    "multi-level, small": partial(MultiLevelFeedback, num_levels=3, first_quantum_tokens=2, prompt_weight=0.2, max_wait_s=4.0),
    "multi-level, one level": partial(MultiLevelFeedback, num_levels=1),
    "longest-prefix, 1 pass": partial(LongestPrefixFirst, window=3, max_passes=1),
}


def _config(budget: int = 7) -> SchedulerConfig:
    return SchedulerConfig(
        page_size_tokens=PAGE,
        num_pages=PAGES,
        max_model_len_tokens=64,
        step_budget_tokens=budget,
        max_running_requests=RUNNING,
        max_waiting_requests=5,
    )


class _Prediction:
    """Says what a request's own numbers say, right or wrong."""

    def predict(self, request: Request) -> int:
        return 1 + request.number % request.max_tokens

    def observe(self, request: Request, answer_tokens: int) -> None:
        assert 1 <= answer_tokens <= request.max_tokens


class Recorded(Policy):
    """Passes on what a scheduler says to a policy, and checks that each word may follow the one before it."""

    may_follow: ClassVar[dict[Enter | Leave | None, set[Enter | Leave | None]]] = {
        None: {Enter.ARRIVED},
        Enter.ARRIVED: set(Leave),
        Enter.PREEMPTED: set(Leave),
        Enter.UNBLOCKED: set(Leave),
        Leave.ADMITTED: {Enter.PREEMPTED, Leave.ENDED},
        Leave.BLOCKED: {Enter.UNBLOCKED, Leave.ENDED},
        Leave.ENDED: set(),
    }

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.policy.cached_tokens = self._count_cached
        self.overtakes, self.preempts = policy.overtakes, policy.preempts
        self.last: dict[int, Enter | Leave] = {}
        self.counts: Counter[Enter | Leave] = Counter()
        self.now = 0.0

    def _say(self, state: RequestState, word: Enter | Leave, now: float) -> None:
        number = state.request.number
        assert word in self.may_follow[self.last.get(number)], f"{word} follows {self.last.get(number)}"
        assert now >= self.now or word is Leave.ENDED, "time does not go back"
        self.now = max(now, self.now)
        self.last[number] = word
        self.counts[word] += 1

    def _count_cached(self, state: RequestState) -> int:
        return self.cached_tokens(state)

    def enter(self, state: RequestState, why: Enter, now: float) -> None:
        self._say(state, why, now)
        self.policy.enter(state, why, now)

    def leave(self, state: RequestState, why: Leave, now: float) -> None:
        self._say(state, why, now)
        self.policy.leave(state, why, now)

    def first(self, now: float) -> RequestState | None:
        state = self.policy.first(now)
        assert state is None or isinstance(self.last[state.request.number], Enter), "only who is in the queue is first"
        return state

    def account(self, plan: Plan) -> bool:
        return self.policy.account(plan)

    def yields(self, running: RequestState, waiting: RequestState) -> bool:
        return self.policy.yields(running, waiting)


class AnyUse(RuleBasedStateMachine):
    """Random arrivals, growth, verdict delays, cancels, pauses, deadlines and page shortage."""

    def __init__(self, make_policy: Callable[[], Policy], budget: int, make_memory: type[KvMemory] = KvMemory) -> None:
        super().__init__()
        self.policy = Recorded(make_policy())
        self.scheduler = Scheduler(_config(budget), self.policy, _Prediction(), make_memory)
        self.live: dict[int, RequestState] = {}
        self.answered: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.drawn_elsewhere: set[int] = set()
        self.count = 0
        self.now = 0.0

    @rule(
        tenant=st.sampled_from(["a", "a", "b", "c"]),
        prompt=st.lists(st.sampled_from([1, 1, 1, 2]), min_size=1, max_size=24),
        max_tokens=st.integers(1, 20),
        priority=st.integers(-2, 2),
        elsewhere=st.booleans(),
        deadline=st.sampled_from([None, None, None, None, 6.0]),
    )
    def submit(self, tenant: str, prompt: list[int], max_tokens: int, priority: int, elsewhere: bool, deadline: float | None) -> None:
        self.count += 1
        due = None if deadline is None else self.now + deadline
        none = np.empty(0, np.int64)
        request = Request(self.count, tenant, np.array(prompt), none, max_tokens, self.now, deadline=due, priority=priority)
        try:
            self.live[self.count] = self.scheduler.submit(request)
        except Overloaded:
            assert self.scheduler.num_waiting >= 5
            return
        self.answered[self.count], self.wanted[self.count] = 0, max_tokens
        if elsewhere:
            self.drawn_elsewhere.add(self.count)

    @rule(seconds=st.sampled_from([0.0, 0.0, 1.0]))
    def step(self, seconds: float) -> None:
        self.now += seconds
        plan = self.scheduler.step(self.now)
        for failure in plan.failures:
            del self.live[failure.state.request.number]
        self._check(plan)
        rows = [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]
        self.scheduler.complete(plan)
        for state in rows:
            if state.request.number in self.drawn_elsewhere:
                state.awaiting = True
            else:
                self._accept(state)

    def _check(self, plan: Plan) -> None:
        planned = [*plan.decodes, *(chunk.state for chunk in plan.prefills)]
        assert len(planned) == len({id(state) for state in planned}) <= RUNNING
        assert len(plan.decodes) + sum(chunk.length for chunk in plan.prefills) <= self.scheduler.config.step_budget_tokens
        assert all(state.phase is Phase.RUNNING and not state.is_blocked for state in planned)
        due = {
            id(state)
            for state in self.live.values()
            if state.phase is Phase.RUNNING and not state.is_blocked and state.num_computed >= state.prefill_end
        }
        assert {id(state) for state in plan.decodes} == due, "decodes come first: nobody who has begun and runs is left out of a step"
        for state in plan.decodes:
            assert state.table is not None and state.num_computed < state.table.length * PAGE, "the next token has a page"
        for chunk in plan.prefills:
            assert chunk.start == chunk.state.num_computed and 0 < chunk.length <= chunk.state.prefill_end - chunk.start

    def _accept(self, state: RequestState) -> None:
        number = state.request.number
        state.append(1 + number % 2)
        self.answered[number] += 1
        if state.position == state.request.max_tokens:
            self.scheduler.release(number)
            del self.live[number]

    @precondition(lambda self: any(state.awaiting for state in self.live.values()))
    @rule(data=st.data())
    def verdict(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, state in self.live.items() if state.awaiting]))
        self.live[number].awaiting = False
        self._accept(self.live[number])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[number]
        assert self.scheduler.release(number) is not None

    @precondition(lambda self: any(state.admitted_at is not None for state in self.live.values()))
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        admitted = [number for number, state in self.live.items() if state.admitted_at is not None]
        state = self.live[data.draw(st.sampled_from(admitted))]
        state.paused = not state.paused

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.scheduler.assert_consistent()

    def teardown(self) -> None:
        """Once nothing arrives and nobody is held up, every request ends, with exactly its tokens, and all pages are free."""
        for state in list(self.live.values()):
            state.paused = False
            if state.awaiting:
                state.awaiting = False
                self._accept(state)
        self.drawn_elsewhere.clear()
        # Each step computes something; at worst every request is computed again for every token of another.
        work = sum(state.tokens.size for state in self.live.values())
        bound = (work + 1) * (len(self.live) + 1)
        ended = {number for number in self.wanted if number not in self.live}
        for _ in range(bound):
            if not self.live:
                break
            before = self.scheduler.num_running + self.scheduler.num_waiting
            self.step(1.0)
            assert before >= self.scheduler.num_running + self.scheduler.num_waiting
        assert not self.live, "every request ends"
        for number, wanted in self.wanted.items():
            assert self.answered[number] <= wanted
            assert number in ended or self.scheduler.find(number) is None
        self.scheduler.assert_consistent()
        assert self.scheduler.memory.num_available == PAGES
        assert self.scheduler.step(self.now).is_empty
        assert set(self.policy.last.values()) <= {Leave.ENDED}, "of every request that arrived the policy was told the end"
        counts = self.policy.counts
        assert counts[Enter.ARRIVED] == len(self.wanted)
        assert counts[Enter.PREEMPTED] == self.scheduler.num_preemptions
        assert counts[Leave.ENDED] == counts[Enter.ARRIVED]
        assert counts[Enter.UNBLOCKED] <= counts[Leave.BLOCKED] and counts[Enter.PREEMPTED] <= counts[Leave.ADMITTED]
        if isinstance(self.policy.policy, FairTenants):
            assert self.policy.policy.num_tenants == 0, "nothing is remembered of anybody"


@pytest.mark.parametrize("budget", [RUNNING, 7], ids=["budget of the batch", "larger budget"])
@pytest.mark.parametrize("name", VARIANTS)
def test_any_use_leaks_no_page_starves_nobody_and_keeps_decodes_first(name: str, budget: int) -> None:
    class OfPolicy(AnyUse):
        def __init__(self) -> None:
            super().__init__(VARIANTS[name], budget)

    run_state_machine_as_test(OfPolicy, settings=examples(40, stateful_step_count=40))


@pytest.mark.parametrize("make_memory", [PredictedMemory, MaximumMemory])
@pytest.mark.parametrize("name", ["fcfs", "shortest-first", "priority, 2 s a level", "multi-level, small"])
def test_the_same_holds_whatever_is_reserved_in_advance(name: str, make_memory: type[KvMemory]) -> None:
    class OfMemory(AnyUse):
        def __init__(self) -> None:
            super().__init__(VARIANTS[name], 7, make_memory)

    run_state_machine_as_test(OfMemory, settings=examples(40, stateful_step_count=40))


class _Flood:
    """One request against a steady flow of those a policy likes better: whenever one of them ends, another comes.

    The one has a long prompt nobody shares, a long answer, the worst priority and a tenant that is the others' too.
    """

    def __init__(self, policy: Policy) -> None:
        self.scheduler = Scheduler(_config(), policy)
        self.count = 0
        self.now = 0.0
        for _ in range(4):
            self._favourite()
        self._step()
        none = np.empty(0, np.int64)
        self.one = self.scheduler.submit(Request(0, "a", np.full(16, 9), none, 12, self.now, priority=3))

    def steps_until_the_end(self, limit: int) -> int | None:
        for steps in range(1, limit + 1):
            self._step()
            if self.one.phase is Phase.ENDED:
                assert self.one.position == 12
                return steps
        return None

    def _favourite(self) -> None:
        self.count += 1
        self.scheduler.submit(Request(self.count, "a", np.full(9, 1), np.empty(0, np.int64), 2, self.now))

    def _step(self) -> None:
        self.now += 1.0
        plan = self.scheduler.step(self.now)
        self.scheduler.complete(plan)
        for state in [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]:
            state.append(1)
            if state.position == state.request.max_tokens:
                self.scheduler.release(state.request.number)
                if state is not self.one:
                    self._favourite()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_steady_flow_of_better_requests_starves_nobody(name: str) -> None:
    assert _Flood(VARIANTS[name]()).steps_until_the_end(400) is not None


@pytest.mark.parametrize(
    "policy",
    [
        PriorityFirst(1e6),
        ShortestFirst(1e6),
        MultiLevelFeedback(first_quantum_tokens=2, prompt_weight=0.2, max_wait_s=1e6),
        LongestPrefixFirst(max_passes=10**6),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_the_same_flow_starves_it_where_the_bound_is_put_off(policy: Policy) -> None:
    assert _Flood(policy).steps_until_the_end(400) is None
