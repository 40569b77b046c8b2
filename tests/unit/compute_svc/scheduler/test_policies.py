"""What each policy promises, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.scheduler.base import Phase, Plan, RequestState
from compute_svc.scheduler.policies import POLICIES, make_policy
from compute_svc.scheduler.policies.fair_tenants import FairTenants
from compute_svc.scheduler.policies.longest_prefix import LongestPrefixFirst
from compute_svc.scheduler.policies.multi_level import MultiLevelFeedback
from compute_svc.scheduler.policies.policy import Enter, Leave, Policy
from compute_svc.scheduler.policies.priority import PriorityFirst
from compute_svc.scheduler.policies.ranked import RankedQueue
from compute_svc.scheduler.policies.shortest_first import ShortestFirst
from compute_svc.wire.request import Request
from tests.examples import examples
from tests.fakes.asked_scheduler import Asked


def test_every_name_makes_a_policy_of_its_own_and_an_unknown_one_is_refused_by_name() -> None:
    for name in POLICIES:
        assert make_policy(name) is not make_policy(name)
        asked = Asked(make_policy(name), running=2)
        for _ in range(5):
            asked.ask(6, 5)
        assert sorted(asked.run()) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no policy is called 'lottery', the names are fcfs, priority"):
        make_policy("lottery")


def test_a_policy_is_at_most_five_methods() -> None:
    for make in POLICIES.values():
        names = {name for name in dir(make()) if not name.startswith("_") and name in vars(Policy)}
        methods = {name for name in names if callable(getattr(Policy, name)) and name != "cached_tokens"}
        assert methods == {"enter", "leave", "first", "account", "yields"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FairTenants(prompt_weight=0), "prompt_weight and answer_weight are 0 and 2.0, they must be above 0"),
        (lambda: ShortestFirst(float("nan")), "seconds_per_token is nan, it must be above 0"),
        (lambda: PriorityFirst(0), "seconds_per_level is 0, it must be above 0"),
        (lambda: LongestPrefixFirst(window=0), "window is 0 and max_passes 32, they must be at least 1 and 0"),
        (lambda: MultiLevelFeedback(num_levels=0), "num_levels is 0, it must be at least 1"),
        (lambda: MultiLevelFeedback(max_wait_s=0), "max_wait_s 0, they must be at least and above 0"),
    ],
)
def test_a_size_that_makes_no_sense_is_refused_by_name(make: Callable[[], Policy], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@given(st.data())
@examples(100)
def test_a_ranked_queue_gives_the_lowest_rank_whatever_came_and_went(data: st.DataObject) -> None:
    queue, here = RankedQueue(), dict[int, RequestState]()
    for number in range(data.draw(st.integers(1, 150))):
        kind = data.draw(st.sampled_from(["add", "add", "move", "remove"]))
        if not here:
            kind = "add"
        if kind == "add":
            state = RequestState(Request(number, "", np.array([1]), np.empty(0, np.int64), 1, 0.0), number)
            here[number] = state
        else:
            state = here[data.draw(st.sampled_from(sorted(here)))]
        if kind == "remove":
            queue.remove(state)
            del here[state.request.number]
        else:
            state.rank = (float(data.draw(st.integers(0, 3))), state.arrival)
            queue.add(state)
        assert queue.first() is min(here.values(), key=lambda state: state.rank, default=None)
        assert len(queue) == len(here)


def test_a_better_priority_is_served_first_and_equals_in_the_order_of_arrival() -> None:
    asked = Asked(PriorityFirst())
    for priority in (2, 0, 1, 0, -1):
        asked.ask(priority=priority)
    assert asked.run() == [5, 2, 4, 3, 1]


def test_a_running_request_gives_up_its_place_for_a_better_priority_and_comes_back_with_its_tokens() -> None:
    asked = Asked(PriorityFirst())
    one = asked.ask(max_tokens=8, priority=1)
    for _ in range(3):
        asked.step()
    two = asked.ask(priority=0)
    plan = asked.step()
    assert plan.decodes == [] and [chunk.state for chunk in plan.prefills] == [two]
    assert (one.phase, one.preemptions, one.position) == (Phase.PREEMPTED, 1, 3)
    assert asked.run() == [2, 1]


def test_a_running_request_stays_for_an_equal_priority_and_for_one_it_is_older_than() -> None:
    asked = Asked(PriorityFirst(seconds_per_level=10.0))
    one = asked.ask(priority=1, at=0.0)
    asked.step(0.0)
    asked.ask(priority=1, at=0.0)
    asked.ask(priority=0, at=10.5)
    assert asked.step(11.0).decodes == [one]


def test_a_full_budget_of_decode_rows_does_not_hold_up_a_better_priority() -> None:
    asked = Asked(PriorityFirst(), running=3, budget=3)
    worst = [asked.ask(1, 20, priority=1) for _ in range(3)]
    for _ in range(2):
        asked.step()
    asked.ask(1, priority=0)
    plan = asked.step()
    assert plan.decodes == worst[:2]
    assert [(chunk.state.request.number, chunk.length) for chunk in plan.prefills] == [(4, 1)]


def test_a_better_priority_comes_before_the_rest_of_a_long_prompt() -> None:
    asked = Asked(PriorityFirst(), running=4, budget=8)
    asked.ask(40, priority=1)
    asked.step()
    asked.ask(6, priority=0)
    assert [(chunk.state.request.number, chunk.length) for chunk in asked.step().prefills] == [(2, 6), (1, 2)]


def test_the_shortest_expected_answer_is_served_first_and_the_longest_gives_way_when_pages_run_out() -> None:
    asked = Asked(ShortestFirst(), running=4)
    for max_tokens in (9, 3, 6):
        asked.ask(max_tokens=max_tokens)
    assert [chunk.state.request.number for chunk in asked.step().prefills] == [2, 3, 1]
    asked = Asked(ShortestFirst(), running=2, pages=8)
    long = asked.ask(7, 20)
    asked.ask(7, 16)
    assert asked.run() == [2, 1]
    assert long.preemptions > 0


def test_what_remains_of_an_answer_counts_and_outgrowing_the_prediction_doubles_it() -> None:
    state = RequestState(Request(1, "", np.array([1]), np.empty(0, np.int64), 20, 0.0), 1)
    state.predicted_tokens = 4
    remaining = []
    for _ in range(19):
        remaining.append(state.remaining_tokens)
        state.append(1)
    assert remaining == [4, 3, 2, 1, 4, 3, 2, 1, 8, 7, 6, 5, 4, 3, 2, 1, 4, 3, 2]


def test_a_shorter_answer_passes_only_within_the_seconds_it_is_worth() -> None:
    asked = Asked(ShortestFirst(seconds_per_token=1.0))
    asked.ask(max_tokens=10, at=0.0)
    asked.ask(max_tokens=4, at=5.0)
    asked.ask(max_tokens=4, at=7.0)
    assert asked.run() == [2, 1, 3]


def test_a_prompt_joins_the_first_level_that_covers_it() -> None:
    policy = MultiLevelFeedback(num_levels=3, first_quantum_tokens=4, prompt_weight=0.5)
    asked = Asked(policy)
    states = [asked.ask(length, 1) for length in (17, 16, 9, 8, 1)]
    assert [state.rank[0] for state in states] == [2, 1, 1, 0, 0]
    assert asked.run() == [4, 5, 2, 3, 1]


def test_a_quantum_used_up_a_request_falls_and_gives_way_to_one_of_a_better_level() -> None:
    asked = Asked(MultiLevelFeedback(num_levels=3, first_quantum_tokens=4, prompt_weight=0.0))
    one = asked.ask(4, 40)
    levels = []
    for _ in range(14):
        asked.step()
        levels.append(one.rank[0])
    # The first token comes with the prompt; quanta of 4, then 8.
    assert levels == [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    two = asked.ask(4, 8)
    assert [chunk.state for chunk in asked.step().prefills] == [two]
    assert one.phase is Phase.PREEMPTED
    assert asked.run() == [2, 1]


def test_a_running_request_stays_for_one_of_its_own_level() -> None:
    asked = Asked(MultiLevelFeedback(num_levels=2, first_quantum_tokens=8, prompt_weight=0.0))
    one = asked.ask(4, 6)
    asked.step()
    asked.ask(4, 2)
    assert asked.step().decodes == [one]
    assert asked.run() == [1, 2]


def test_one_that_has_waited_long_enough_enters_the_first_level_again_with_a_whole_quantum() -> None:
    asked = Asked(MultiLevelFeedback(num_levels=2, first_quantum_tokens=4, prompt_weight=0.0, max_wait_s=5.0))
    one = asked.ask(4, 30)
    for _ in range(6):
        asked.step(0.0)
    asked.ask(4, 4, at=1.0)
    asked.step(1.0)
    assert (one.phase, one.rank[0]) == (Phase.PREEMPTED, 1)
    asked.step(5.9)
    assert one.rank[0] == 1
    asked.step(6.0)
    assert one.rank[0] == 0
    position = one.position
    while one.rank[0] == 0:
        asked.step(7.0)
    assert one.position >= position + 4


def test_losing_its_place_before_its_first_token_does_not_set_back_the_time_a_request_has_waited() -> None:
    policy = MultiLevelFeedback(num_levels=3, first_quantum_tokens=4, prompt_weight=1.0, max_wait_s=10.0)
    state = RequestState(Request(1, "", np.arange(9), np.empty(0, np.int64), 4, 0.0), 1)
    policy.enter(state, Enter.ARRIVED, 0.0)
    for now in (3.0, 6.0, 9.0):
        assert policy.first(now) is state and state.rank[0] == 2
        policy.leave(state, Leave.ADMITTED, now)
        policy.enter(state, Enter.PREEMPTED, now)
    assert policy.first(10.0) is state and state.rank[0] == 0
    policy.leave(state, Leave.ADMITTED, 10.0)
    policy.account(Plan(decodes=[state]))
    policy.enter(state, Enter.PREEMPTED, 12.0)
    assert policy.first(21.0) is state and state.rank == (0, 2)


def test_the_longest_cached_prefix_is_admitted_first() -> None:
    asked = Asked(LongestPrefixFirst())
    shared = list(range(12))
    asked.ask(shared, 1)
    asked.run()
    asked.ask(8, 1)
    asked.ask([*shared[:8], 99, 98], 1)
    asked.ask([*shared, 97], 1)
    assert asked.run() == [1, 4, 3, 2]


@given(passes=st.integers(0, 6), ahead=st.integers(0, 3))
@examples(30)
def test_the_oldest_is_passed_a_bounded_number_of_times(passes: int, ahead: int) -> None:
    asked = Asked(LongestPrefixFirst(window=8, max_passes=passes))
    shared = list(range(12))
    asked.ask(shared, 1)
    asked.run()
    uncached = [asked.ask(8, 1) for _ in range(ahead + 1)]
    for _ in range(60):
        asked.ask([*shared, 50], 1)
    order = [number for number in asked.run() if number > 1]
    assert order.index(uncached[-1].request.number) == (ahead + 1) * (passes + 1) - 1


def test_tenants_that_wait_are_served_in_turn_however_much_one_asks() -> None:
    asked = Asked(FairTenants())
    asked.ask(tenant="a")
    asked.step()
    states = {
        state.request.number: state for state in [asked.ask(tenant="a") for _ in range(6)] + [asked.ask(tenant="b") for _ in range(3)]
    }
    order = [states[number].request.tenant for number in asked.run() if number in states]
    assert order[:6].count("b") == 3


def test_staying_away_saves_up_nothing() -> None:
    asked = Asked(FairTenants())
    for _ in range(10):
        asked.ask(tenant="a", max_tokens=8)
    for _ in range(60):
        asked.step()
    for _ in range(6):
        asked.ask(tenant="b", max_tokens=8)
    asked.ended.clear()
    order = asked.run()
    first = [number > 10 for number in order[:6]]
    assert sum(first) <= 4, "b gets its turns and not all that a had before"


@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    running=st.integers(1, 4),
    lengths=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5),
)
@examples(40)
def test_the_service_of_tenants_that_always_wait_differs_by_the_papers_bound(
    weights: list[int], running: int, lengths: list[tuple[int, int]]
) -> None:
    """Any two tenants, however often each asks, while both have requests waiting."""
    asked = Asked(FairTenants(prompt_weight=1.0, answer_weight=2.0), running=running)
    # Enough that none runs out of waiting requests within a step.
    tenants = {f"t{index}": running + weight for index, weight in enumerate(weights)}
    waiting: Counter[str] = Counter()
    served: Counter[str] = Counter()

    def refill() -> None:
        for tenant, weight in tenants.items():
            while waiting[tenant] < weight:
                prompt, answer = lengths[asked.count % len(lengths)]
                asked.ask(prompt, answer, tenant=tenant)
                waiting[tenant] += 1

    refill()
    # Twice the larger of the longest prompt and a full batch of the longest answers.
    bound = 2 * max(20.0, 2.0 * running * 20)
    for _ in range(80):
        plan = asked.step()
        for state in plan.admitted:
            waiting[state.request.tenant] -= 1
            served[state.request.tenant] += state.request.prompt.size
        for state in plan.decodes:
            served[state.request.tenant] += 2
        refill()
        assert max(served[tenant] for tenant in tenants) - min(served[tenant] for tenant in tenants) <= bound
    assert asked.scheduler.num_preemptions == 0


def test_what_is_computed_again_is_not_charged_again() -> None:
    policy = FairTenants(prompt_weight=1.0, answer_weight=2.0)
    asked = Asked(policy, running=2, pages=8)
    asked.ask(7, 16, tenant="a")
    second = asked.ask(7, 20, tenant="b")
    while not second.preemptions or second.phase is Phase.PREEMPTED:
        asked.step()
    rows = second.position - 1 - second.preemptions
    assert policy._counters["b"] == 7 + 2 * rows


def test_requests_that_waited_for_a_leader_are_counted_once_and_forgotten() -> None:
    policy = FairTenants()
    asked = Asked(policy, running=4)
    shared = list(range(40))
    for index in range(6):
        asked.ask([*shared, 100 + index], 2, tenant="a")
    asked.ask(4, 2, tenant="b")
    asked.step()
    assert policy._requests == {"a": 6, "b": 1}
    asked.run()
    assert policy.num_tenants == 0


def test_tenants_that_left_are_forgotten() -> None:
    policy = FairTenants()
    asked = Asked(policy, running=2)
    for index in range(1000):
        asked.ask(2, 3, tenant=f"t{index}")
        asked.step()
        asked.step()
    assert len(policy._counters) < 300
    asked.run()
    assert not policy._counters and not policy._heap and not policy._requests and not policy._queues
