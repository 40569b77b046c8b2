"""Fair queueing, token by token: who is charged what, where a tenant begins, and what is remembered of those that left."""

from __future__ import annotations

import numpy as np
import pytest

from compute_svc.scheduler.base import Plan, RequestState
from compute_svc.scheduler.policies.fair_tenants import FairTenants
from compute_svc.scheduler.policies.policy import Enter, Leave
from compute_svc.wire.request import Request


class _Queue:
    """A policy, and what a scheduler says to it."""

    def __init__(self, policy: FairTenants) -> None:
        self.policy = policy
        self.count = 0

    def ask(self, tenant: str, prompt: int = 1) -> RequestState:
        """A request arrives."""
        self.count += 1
        state = RequestState(Request(self.count, tenant, np.zeros(prompt, np.int64), np.empty(0, np.int64), 100, 0.0), self.count)
        self.policy.enter(state, Enter.ARRIVED, 0.0)
        return state

    def admit(self, state: RequestState, decodes: int = 0) -> RequestState:
        """It runs, and computes so many answer tokens."""
        self.policy.leave(state, Leave.ADMITTED, 0.0)
        for _ in range(decodes):
            assert not self.policy.account(Plan(decodes=[state])), "ranks of running requests stay"
        return state

    def end(self, state: RequestState) -> None:
        """It has come to its end."""
        self.policy.leave(state, Leave.ENDED, 0.0)

    def serve(self, tenant: str, prompt: int = 1, decodes: int = 0) -> None:
        """One comes, runs and is gone."""
        self.end(self.admit(self.ask(tenant, prompt), decodes))

    def order(self, count: int, prompt: int = 1) -> str:
        """The tenants of the next that are admitted, each with so long a prompt."""
        tenants = ""
        for _ in range(count):
            state = self.policy.first(0.0)
            assert state is not None
            assert state.request.prompt.size == prompt
            self.admit(state)
            tenants += state.request.tenant
        return tenants


@pytest.mark.parametrize(
    ("weights", "decodes", "first"),
    [
        pytest.param({}, 1, "b", id="4 prompt tokens are more than 1 and an answer token"),
        pytest.param({}, 2, "a", id="and less than 1 and 2 answer tokens"),
        pytest.param({"prompt_weight": 0.5, "answer_weight": 0.25}, 5, "b", id="other weights"),
        pytest.param({"prompt_weight": 0.5, "answer_weight": 0.25}, 7, "a", id="other weights, one more"),
    ],
)
def test_an_answer_token_costs_what_two_prompt_tokens_cost_unless_said_otherwise(
    weights: dict[str, float], decodes: int, first: str
) -> None:
    queue = _Queue(FairTenants(**weights))
    a, b = queue.ask("a", 4), queue.ask("b", 1)
    queue.ask("a")
    queue.ask("b")
    queue.admit(a)
    queue.admit(b, decodes)
    assert queue.order(1) == first


def test_who_has_been_served_least_is_next_and_of_equals_who_came_first() -> None:
    queue = _Queue(FairTenants())
    for tenant in "baab":
        queue.ask(tenant, 2)
    assert queue.order(4, 2) == "baab"
    assert queue.policy.first(0.0) is None


def test_a_tenant_that_begins_to_wait_begins_at_the_least_of_those_that_wait() -> None:
    queue = _Queue(FairTenants())
    first = queue.ask("a", 10)
    for _ in range(3):
        queue.ask("a")
    queue.admit(first)
    for _ in range(3):
        queue.ask("c")
    assert queue.order(6) == "acacac"


def test_a_tenant_that_begins_to_wait_while_nobody_does_begins_where_the_last_one_was() -> None:
    queue = _Queue(FairTenants())
    running = queue.admit(queue.ask("a", 10))
    for _ in range(2):
        queue.ask("b")
    for _ in range(2):
        queue.ask("a")
    # 10 each: b, then a, then b and a again.
    assert queue.order(4) == "baba"
    queue.end(running)


def test_who_comes_back_keeps_what_it_was_served_beyond_the_least() -> None:
    queue = _Queue(FairTenants())
    first = queue.ask("b")
    queue.ask("b")
    queue.serve("a", 3)
    queue.admit(first)
    for _ in range(2):
        queue.ask("a")
    for _ in range(2):
        queue.ask("b")
    # b had 1, a 3.
    assert queue.order(5) == "bbaba"


def test_a_preempted_request_is_not_charged_again_and_its_tenant_not_lifted() -> None:
    queue = _Queue(FairTenants())
    state = queue.ask("a", 5)
    queue.ask("b", 1)
    queue.admit(state)
    state.preemptions = 1
    queue.policy.enter(state, Enter.PREEMPTED, 0.0)
    queue.ask("b", 1)
    queue.admit(state)
    queue.ask("a")
    for _ in range(4):
        queue.ask("b")
    # b has 0 and is next until it has 5 as a has; then who came first.
    assert queue.order(7) == "bbbbbab"


def test_a_request_that_is_blocked_or_ends_in_the_queue_costs_nothing() -> None:
    queue = _Queue(FairTenants())
    gone, blocked, kept = queue.ask("a", 9), queue.ask("a", 9), queue.ask("a")
    queue.ask("b")
    queue.end(gone)
    queue.policy.leave(blocked, Leave.BLOCKED, 0.0)
    assert queue.policy.first(0.0) is kept
    queue.policy.enter(blocked, Enter.UNBLOCKED, 0.0)
    assert queue.policy.first(0.0) is blocked, "it came before"


def test_who_is_away_is_remembered_while_it_was_served_more_than_the_least() -> None:
    queue = _Queue(FairTenants())
    policy = queue.policy
    queue.ask("w")
    waiting = queue.ask("w")
    queue.serve("a", 5)
    queue.serve("b", 2)
    assert policy.num_tenants == 3
    assert queue.order(1) == "w"
    queue.serve("c")
    assert policy.num_tenants == 4
    queue.admit(waiting, decodes=2)
    # Now w has 6.
    queue.ask("w")
    queue.serve("d")
    queue.policy.first(0.0)
    queue.serve("d")
    assert set(policy._counters) == {"w", "d"}
    assert [tenant for _, tenant in policy._away] == ["d"]


def test_who_came_back_before_it_was_forgotten_is_remembered_again_when_it_leaves() -> None:
    queue = _Queue(FairTenants())
    policy = queue.policy
    first, second = queue.ask("w"), queue.ask("w")
    queue.ask("w")
    queue.serve("a", 4)
    again = queue.admit(queue.ask("a", 4))
    queue.admit(first, decodes=2)
    queue.serve("b")
    assert policy._counters["a"] == 8, "it has a request"
    queue.end(again)
    queue.admit(second, decodes=1)
    queue.serve("b")
    assert "a" not in policy._counters, "w has 8 too"


def test_nothing_is_remembered_when_nobody_has_a_request() -> None:
    queue = _Queue(FairTenants())
    policy = queue.policy
    one, other = queue.admit(queue.ask("a", 3)), queue.admit(queue.ask("b", 9))
    queue.end(other)
    assert policy.num_tenants == 1, "nobody begins below the last one"
    queue.end(one)
    assert policy.num_tenants == 0
    assert not (policy._heap or policy._requests or policy._queues or policy._away or policy._listed_away)
    for tenant in "ba":
        queue.ask(tenant)
    assert queue.order(2) == "ba"


def test_a_thousand_tenants_that_came_and_went_are_not_remembered_while_another_stays() -> None:
    queue = _Queue(FairTenants())
    queue.ask("stays")
    state = queue.admit(queue.ask("stays"))
    for index in range(1000):
        queue.serve(f"t{index}", 3)
        queue.admit(queue.ask("stays", 3))
    assert queue.policy.num_tenants <= 3
    assert len(queue.policy._away) <= 2 and len(queue.policy._heap) <= 3
    queue.end(state)


def test_who_came_back_and_was_served_more_is_remembered_by_what_it_has_now() -> None:
    queue = _Queue(FairTenants())
    policy = queue.policy
    first = queue.ask("w")
    for _ in range(2):
        queue.ask("w")
    for _ in range(2):
        queue.serve("a", 4)
    queue.admit(first, decodes=2)
    queue.serve("b")
    assert (policy._counters["w"], policy._counters["a"]) == (5, 8)
    for _ in range(3):
        queue.ask("a")
    # w has 5 until it has 8 too.
    assert queue.order(2) == "ww"


@pytest.mark.parametrize(("prompt_weight", "answer_weight"), [(0, 1), (-0.5, 1), (1, 0), (1, -0.5)])
def test_service_that_costs_nothing_is_refused(prompt_weight: float, answer_weight: float) -> None:
    with pytest.raises(
        ValueError, match=f"^prompt_weight and answer_weight are {prompt_weight} and {answer_weight}, they must be above 0$"
    ):
        FairTenants(prompt_weight=prompt_weight, answer_weight=answer_weight)
