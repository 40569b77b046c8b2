"""The scheduler's promises, one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from compute_svc.kv.radix_tree import Prefix, RadixTree
from compute_svc.scheduler.base import Phase, Plan, RequestState
from compute_svc.scheduler.followers import Followers
from compute_svc.scheduler.policies.ranked import RankedPolicy
from compute_svc.scheduler.scheduler import Scheduler
from tests.fakes.scheduler_steps import chunks_of, compute, decodes_of, request_of, small_config, step
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 40))
    assert [chunks_of(step(scheduler)) for _ in range(3)] == [[(1, 0, 16)], [(1, 16, 16)], [(1, 32, 8)]]
    assert decodes_of(step(scheduler)) == [1]


def test_decodes_come_before_prefills_and_count_against_the_budget() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 4))
    scheduler.submit(request_of(2, 4))
    step(scheduler)
    scheduler.submit(request_of(3, 30))
    plan = step(scheduler)
    assert decodes_of(plan) == [1, 2]
    assert chunks_of(plan) == [(3, 0, 14)]


def test_several_prompts_start_in_one_step_with_the_prefix_cache_on() -> None:
    scheduler = Scheduler(small_config())
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, 5))
    assert chunks_of(step(scheduler)) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]


def test_pages_grow_one_at_a_time() -> None:
    scheduler = Scheduler(small_config())
    state = scheduler.submit(request_of(1, 4))
    lengths = []
    for _ in range(6):
        step(scheduler)
        assert state.table is not None
        lengths.append(state.table.length)
    assert lengths == [1, 2, 2, 2, 2, 3]


def test_a_request_waits_until_there_are_pages_for_it() -> None:
    scheduler = Scheduler(small_config(num_pages=6))
    scheduler.submit(request_of(1, 16, max_tokens=4))
    scheduler.submit(request_of(2, 8, max_tokens=4))
    assert chunks_of(step(scheduler)) == [(1, 0, 16)]
    for _ in range(2):
        assert chunks_of(step(scheduler)) == []
    step(scheduler)
    assert chunks_of(step(scheduler)) == [(2, 0, 8)]


def test_the_prefix_cache_gives_way_to_admission() -> None:
    scheduler = Scheduler(small_config(num_pages=4))
    scheduler.submit(request_of(1, 12, max_tokens=1))
    step(scheduler)
    assert scheduler.memory.tree.evictable_pages == 3
    scheduler.submit(request_of(2, 12, max_tokens=2))
    assert chunks_of(step(scheduler)) == [(2, 0, 12)]


def _fill_until_preemption(scheduler: Scheduler) -> Plan:
    for _ in range(20):
        plan = scheduler.step(0.0)
        if scheduler.num_preemptions:
            return plan
        compute(scheduler, plan)
    raise AssertionError("nobody was preempted")


def test_the_latest_arrival_is_preempted_and_comes_back_first_with_its_tokens() -> None:
    scheduler = Scheduler(small_config(num_pages=6, max_running_requests=2))
    first = scheduler.submit(request_of(1, 7, max_tokens=14))
    second = scheduler.submit(request_of(2, 7, max_tokens=14))
    scheduler.submit(request_of(3, 4, max_tokens=2))
    plan = _fill_until_preemption(scheduler)
    assert decodes_of(plan) == [1]
    assert (second.phase, first.phase) == (Phase.PREEMPTED, Phase.RUNNING)
    generated = second.tokens[: second.num_tokens].tolist()
    compute(scheduler, plan)
    order: list[int] = []
    for _ in range(40):
        plan = scheduler.step(0.0)
        order += [chunk.state.request.number for chunk in plan.prefills]
        if second.table is not None and order == [2]:
            assert second.tokens[: second.num_tokens].tolist() == generated
            assert (second.preemptions, scheduler.num_preemptions) == (1, 1)
        compute(scheduler, plan)
    assert order == [2, 3]
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_a_preempted_request_finds_its_own_prefix_in_the_cache() -> None:
    scheduler = Scheduler(small_config(num_pages=6, max_running_requests=2))
    scheduler.submit(request_of(1, 7, max_tokens=14))
    second = scheduler.submit(request_of(2, 7, max_tokens=14))
    compute(scheduler, _fill_until_preemption(scheduler))
    scheduler.release(1)
    plan = scheduler.step(0.0)
    assert [chunk.state for chunk in plan.prefills] == [second]
    assert plan.prefills[0].start >= 8


def test_a_full_pool_leaves_room_for_growth_before_it_admits() -> None:
    scheduler = Scheduler(small_config(num_pages=4))
    scheduler.submit(request_of(1, 8, max_tokens=4))
    scheduler.submit(request_of(2, 8, max_tokens=4))
    assert chunks_of(step(scheduler)) == [(1, 0, 8)]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field", "words"),
    [
        (70, 1, "token_ids", "token_ids has 70 tokens, the limit is 31"),
        (32, 1, "token_ids", "token_ids has 32 tokens, the limit is 31"),
        (30, 3, "max_tokens", "max_tokens is 3, the limit is 2"),
    ],
)
def test_a_request_that_can_never_fit_is_refused_at_once(prompt: int, max_tokens: int, field: str, words: str) -> None:
    scheduler = Scheduler(small_config(num_pages=8, max_model_len_tokens=64))
    with pytest.raises(PromptTooLong, match=words) as caught:
        scheduler.submit(request_of(1, prompt, max_tokens=max_tokens))
    assert caught.value.field == field
    assert scheduler.num_waiting == 0


def test_the_largest_request_that_fits_runs_alone() -> None:
    scheduler = Scheduler(small_config(num_pages=8))
    scheduler.submit(request_of(1, 30, max_tokens=2))
    assert [compute(scheduler, scheduler.step(0.0)) for _ in range(4)] == [[], [1], [1], []]


def test_a_prompt_longer_than_the_budget_neither_blocks_the_queue_nor_spins() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 50, max_tokens=4))
    scheduler.submit(request_of(2, 4, max_tokens=4))
    ended = [compute(scheduler, scheduler.step(0.0)) for _ in range(8)]
    assert ended == [[], [], [], [1, 2], [1, 2], [1, 2], [1, 2], []]


def test_an_answer_that_is_complete_already_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="generated_token_ids has 2"):
        Scheduler(small_config()).submit(request_of(1, 4, max_tokens=2, generated=np.array([1, 2])))


def test_replayed_tokens_are_prefilled_with_the_prompt() -> None:
    scheduler = Scheduler(small_config())
    state = scheduler.submit(request_of(1, 4, max_tokens=4, generated=np.array([1, 2])))
    assert chunks_of(step(scheduler)) == [(1, 0, 6)]
    assert state.position == 3


def test_a_full_queue_refuses_one_more() -> None:
    scheduler = Scheduler(small_config(max_running_requests=1, max_waiting_requests=2))
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, 4))
    with pytest.raises(Overloaded, match="the limit is 2"):
        scheduler.submit(request_of(4, 4))
    scheduler.release(2)
    scheduler.submit(request_of(5, 4))


def test_requests_that_need_not_wait_are_not_refused() -> None:
    scheduler = Scheduler(small_config(max_running_requests=4, max_waiting_requests=1))
    for number in range(5):
        scheduler.submit(request_of(number, 2))
    with pytest.raises(Overloaded):
        scheduler.submit(request_of(5, 2))


def test_a_request_that_awaits_its_verdict_keeps_its_pages_and_is_not_planned() -> None:
    scheduler = Scheduler(small_config())
    state = scheduler.submit(request_of(1, 6))
    scheduler.complete(scheduler.step(0.0))
    state.awaiting = True
    used = scheduler.memory.pool.num_free
    assert scheduler.step(0.0).is_empty
    assert scheduler.memory.pool.num_free == used
    state.append(7)
    state.awaiting = False
    assert decodes_of(scheduler.step(0.0)) == [1]


@pytest.mark.parametrize("sizes", [{"max_running_requests": 2}, {"num_pages": 7}], ids=["no place", "no pages"])
def test_a_paused_request_gives_up_its_place_to_one_that_finds_none_and_gets_it_back(sizes: dict[str, int]) -> None:
    scheduler = Scheduler(small_config(**sizes))
    first, second = (scheduler.submit(request_of(number, 8, max_tokens=4)) for number in (1, 2))
    assert chunks_of(step(scheduler)) == [(1, 0, 8), (2, 0, 8)]
    third = scheduler.submit(request_of(3, 8, max_tokens=4))
    assert chunks_of(step(scheduler)) == []
    first.paused = True
    plan = step(scheduler)
    assert (decodes_of(plan), chunks_of(plan)) == ([2], [(3, 0, 8)])
    assert (first.phase, first.preemptions, scheduler.num_waiting) == (Phase.PREEMPTED, 1, 1)
    scheduler.assert_consistent()
    first.paused = False
    scheduler.release(2)
    assert [chunk[0] for chunk in chunks_of(step(scheduler))] == [1] and first.phase is Phase.RUNNING
    assert third.phase is Phase.RUNNING and second.phase is Phase.ENDED


def test_paused_requests_keep_their_places_as_long_as_nobody_wants_them() -> None:
    scheduler = Scheduler(small_config(max_running_requests=2))
    states = [scheduler.submit(request_of(number, 8)) for number in (1, 2)]
    step(scheduler)
    states[0].paused = True
    step(scheduler)
    assert [state.phase for state in states] == [Phase.RUNNING] * 2


def test_a_paused_request_does_not_hold_up_the_others() -> None:
    scheduler = Scheduler(small_config())
    one = scheduler.submit(request_of(1, 4))
    scheduler.submit(request_of(2, 4))
    step(scheduler)
    one.paused = True
    assert decodes_of(step(scheduler)) == [2]
    one.paused = False
    assert decodes_of(step(scheduler)) == [1, 2]


def test_a_preempted_request_is_not_computed_again_before_its_verdict() -> None:
    scheduler = Scheduler(small_config(num_pages=6, max_running_requests=2))
    scheduler.submit(request_of(1, 7, max_tokens=14))
    second = scheduler.submit(request_of(2, 7, max_tokens=14))
    compute(scheduler, _fill_until_preemption(scheduler))
    second.awaiting = True
    scheduler.release(1)
    assert scheduler.step(0.0).is_empty
    second.append(7)
    second.awaiting = False
    assert [chunk.state for chunk in scheduler.step(0.0).prefills] == [second]


@pytest.mark.parametrize("steps", [0, 1, 2, 5], ids=["waiting", "prefilling", "prefilled", "decoding"])
def test_releasing_frees_all_pages_at_once(steps: int) -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 24))
    for _ in range(steps):
        step(scheduler)
    assert scheduler.release(1) is not None
    scheduler.assert_consistent()
    assert scheduler.memory.num_available == 16
    assert scheduler.step(0.0).is_empty


def test_releasing_a_preempted_request_takes_it_out() -> None:
    scheduler = Scheduler(small_config(num_pages=6, max_running_requests=2))
    scheduler.submit(request_of(1, 7, max_tokens=14))
    scheduler.submit(request_of(2, 7, max_tokens=14))
    compute(scheduler, _fill_until_preemption(scheduler))
    scheduler.release(2)
    scheduler.assert_consistent()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)


def test_releasing_twice_frees_once() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 8))
    step(scheduler)
    assert scheduler.release(1) is not None
    assert scheduler.release(1) is None
    scheduler.assert_consistent()


def test_ending_requests_that_share_pages_frees_each_page_once() -> None:
    scheduler = Scheduler(small_config())
    prompt = list(range(12))
    scheduler.submit(request_of(1, prompt))
    step(scheduler)
    for number in (2, 3):
        scheduler.submit(request_of(number, [*prompt, 50 + number]))
    step(scheduler)
    for number in (2, 1, 3):
        scheduler.release(number)
        scheduler.assert_consistent()
    assert scheduler.memory.num_available == 16


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_request_whose_time_is_over_is_dropped_wherever_it_is(steps: int) -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 24, deadline=10.0))
    scheduler.submit(request_of(2, 4, deadline=20.0))
    for _ in range(steps):
        step(scheduler)
    assert scheduler.next_deadline == 10.0
    plan = scheduler.step(10.0)
    assert [(failure.state.request.number, type(failure.error)) for failure in plan.failures] == [(1, DeadlineExceeded)]
    assert scheduler.next_deadline == 20.0
    compute(scheduler, plan)


class _CountingTree(RadixTree):
    matches = 0

    def lock_match(self, tenant: str, tokens: npt.NDArray[np.int64]) -> Prefix:
        self.matches += 1
        return super().lock_match(tenant, tokens)


def test_a_queue_that_cannot_be_served_is_not_matched_again_at_every_step() -> None:
    scheduler = Scheduler(small_config(num_pages=6))
    tree = scheduler.memory.tree = _CountingTree(4)
    scheduler.submit(request_of(1, 15, max_tokens=6))
    scheduler.submit(request_of(2, 16, max_tokens=4))
    for _ in range(5):
        step(scheduler)
    assert tree.matches == 2
    step(scheduler)
    assert (scheduler.num_running, tree.matches) == (0, 2)
    step(scheduler)
    assert (scheduler.num_running, tree.matches) == (1, 3)


class _CountingFollowers(Followers):
    searches = 0

    def find_leader(self, state: RequestState) -> RequestState | None:
        self.searches += 1
        return super().find_leader(state)


def _count_searches(scheduler: Scheduler) -> _CountingFollowers:
    followers = scheduler.followers = _CountingFollowers(scheduler.memory.tree, scheduler.config.page_size_tokens)
    return followers


def test_a_request_that_found_no_room_is_not_compared_with_those_that_run_at_every_step() -> None:
    scheduler = Scheduler(small_config(num_pages=6))
    followers = _count_searches(scheduler)
    scheduler.submit(request_of(1, 15, max_tokens=6))
    scheduler.submit(request_of(2, 16, max_tokens=4))
    step(scheduler)
    assert followers.searches == 2
    for _ in range(4):
        step(scheduler)
    assert followers.searches == 2, "nobody has returned pages"


def test_no_more_wait_for_a_leader_than_can_run() -> None:
    scheduler = Scheduler(small_config(max_running_requests=2, max_waiting_requests=20, step_budget_tokens=4))
    followers = _count_searches(scheduler)
    for number in range(10):
        scheduler.submit(request_of(number, [*range(12), 50 + number], max_tokens=2))
    plan = scheduler.step(0.0)
    assert [state.request.number for state in plan.admitted] == [0]
    compute(scheduler, plan)
    plan = scheduler.step(0.0)
    compute(scheduler, plan)
    assert followers.searches <= 1 + 2 + 1, "the first, two that wait for it, and whoever is next"


class _ShortestPromptFirst(RankedPolicy):
    def key(self, state: RequestState) -> float:
        return state.num_tokens


def test_the_policy_decides_the_order_of_admission() -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=4), _ShortestPromptFirst())
    for number, length in ((1, 4), (2, 3)):
        scheduler.submit(request_of(number, length))
    assert [chunk.state.request.number for chunk in scheduler.step(0.0).prefills] == [2, 1]


def test_a_request_that_found_no_room_is_tried_again_when_a_prefix_is_unpinned() -> None:
    scheduler = Scheduler(small_config(max_model_len_tokens=32))
    pinned = np.arange(24)
    scheduler.submit(request_of(1, pinned.tolist(), 1, pins=True))
    for _ in range(2):
        scheduler.complete(scheduler.step(0.0))
    assert scheduler.memory.pin("", pinned)
    scheduler.release(1)
    scheduler.submit(request_of(2, 22))
    step(scheduler)
    scheduler.submit(request_of(3, 22))
    for _ in range(3):
        assert step(scheduler).admitted == []
    assert scheduler.memory.unpin("", pinned) and not scheduler.memory.unpin("", pinned)
    assert [state.request.number for state in scheduler.step(0.0).admitted] == [3]
