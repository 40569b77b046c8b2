"""The scheduler's promises, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from compute_svc.kv.radix_tree import Prefix, RadixTree
from compute_svc.request import Request
from compute_svc.scheduler.base import Phase, Plan, RequestState, SchedulerConfig
from compute_svc.scheduler.policies.ranked import RankedPolicy
from compute_svc.scheduler.scheduler import Scheduler
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest, Overloaded, PromptTooLong


def _config(**changes: int) -> SchedulerConfig:
    sizes = {
        "page_size_tokens": 4,
        "num_pages": 16,
        "max_model_len_tokens": 64,
        "step_budget_tokens": 16,
        "max_running_requests": 4,
        "max_waiting_requests": 8,
    }
    return SchedulerConfig(**{**sizes, **changes})


def _request(number: int, prompt: Sequence[int] | int, max_tokens: int = 8, **changes: Any) -> Request:
    ids = np.array(prompt, dtype=np.int64) if isinstance(prompt, Sequence) else np.arange(prompt) + 100 * number
    return Request(number, changes.pop("tenant", ""), ids, changes.pop("generated", np.empty(0, np.int64)), max_tokens, 0.0, **changes)


def _compute(scheduler: Scheduler, plan: Plan) -> list[int]:
    """What an engine does with a plan; every wanted row gives token 7. Returns the requests that got one."""
    rows = [*plan.decodes, *(chunk.state for chunk in plan.prefills if chunk.completes)]
    scheduler.complete(plan)
    scheduler.assert_consistent()
    for state in rows:
        state.append(7)
        if state.num_tokens - state.request.prompt.size == state.request.max_tokens:
            scheduler.release(state.request.number)
    scheduler.assert_consistent()
    return [state.request.number for state in rows]


def _step(scheduler: Scheduler) -> Plan:
    plan = scheduler.step(0.0)
    _compute(scheduler, plan)
    return plan


def _chunks(plan: Plan) -> list[tuple[int, int, int]]:
    return [(chunk.state.request.number, chunk.start, chunk.length) for chunk in plan.prefills]


def _decodes(plan: Plan) -> list[int]:
    return [state.request.number for state in plan.decodes]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 40))
    assert [_chunks(_step(scheduler)) for _ in range(3)] == [[(1, 0, 16)], [(1, 16, 16)], [(1, 32, 8)]]
    assert _decodes(_step(scheduler)) == [1]


def test_decodes_come_before_prefills_and_count_against_the_budget() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 4))
    scheduler.submit(_request(2, 4))
    _step(scheduler)
    scheduler.submit(_request(3, 30))
    plan = _step(scheduler)
    assert _decodes(plan) == [1, 2]
    assert _chunks(plan) == [(3, 0, 14)]


def test_several_prompts_start_in_one_step_with_the_prefix_cache_on() -> None:
    scheduler = Scheduler(_config())
    for number in (1, 2, 3):
        scheduler.submit(_request(number, 5))
    assert _chunks(_step(scheduler)) == [(1, 0, 5), (2, 0, 5), (3, 0, 5)]


def test_a_prompt_that_is_asked_for_several_times_is_computed_once() -> None:
    scheduler = Scheduler(_config())
    prompt = list(range(10))
    for number in (1, 2, 3):
        scheduler.submit(_request(number, prompt))
    scheduler.submit(_request(4, 5))
    plan = scheduler.step(0.0)
    assert _chunks(plan) == [(1, 0, 10), (4, 0, 5)]
    _compute(scheduler, plan)
    plan = scheduler.step(0.0)
    assert _chunks(plan) == [(2, 9, 1), (3, 9, 1)]
    assert len(plan.copies) == 2, "the page that is not full is copied"
    _compute(scheduler, plan)
    scheduler.assert_consistent()


def test_prompts_that_share_less_than_a_page_do_not_wait_for_each_other() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, [1, 2, 3, 4, 5, 6]))
    scheduler.submit(_request(2, [1, 2, 3, 7, 8]))
    plan = scheduler.step(0.0)
    assert _chunks(plan) == [(1, 0, 6), (2, 0, 5)]
    _compute(scheduler, plan)
    assert plan.copies == []


@pytest.mark.parametrize("happens", ["leaves", "is preempted", "pauses"])
def test_nobody_waits_for_one_that_does_not_go_on(happens: str) -> None:
    scheduler = Scheduler(_config(step_budget_tokens=8, max_running_requests=8))
    prompt = list(range(20))
    first = scheduler.submit(_request(1, prompt))
    scheduler.submit(_request(2, prompt))
    assert _chunks(_step(scheduler)) == [(1, 0, 8)]
    if happens == "leaves":
        scheduler.release(1)
    elif happens == "pauses":
        first.paused = True
    else:
        scheduler._preempt_last(0.0)
        first.paused = True
    assert _chunks(_step(scheduler))[0] == (2, 8, 8)
    scheduler.assert_consistent()


def test_only_uncached_tokens_count_against_the_budget() -> None:
    scheduler = Scheduler(_config())
    prompt = list(range(16))
    scheduler.submit(_request(1, prompt))
    _step(scheduler)
    scheduler.submit(_request(2, [*prompt, 50, 51]))
    scheduler.submit(_request(3, 13))
    plan = _step(scheduler)
    assert _chunks(plan) == [(2, 16, 2), (3, 0, 13)]
    assert plan.prefills[0].state.cached_tokens == 16
    assert scheduler.num_cached_tokens == 16


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = Scheduler(_config())
    prompt = list(range(8))
    scheduler.submit(_request(1, prompt, max_tokens=1))
    _step(scheduler)
    scheduler.submit(_request(2, prompt, max_tokens=1))
    assert _chunks(_step(scheduler)) == [(2, 7, 1)]


def test_another_tenants_prefix_is_computed_again() -> None:
    scheduler = Scheduler(_config())
    prompt = list(range(8))
    scheduler.submit(_request(1, prompt, max_tokens=1, tenant="one"))
    _step(scheduler)
    scheduler.submit(_request(2, prompt, max_tokens=1, tenant="two"))
    assert _chunks(_step(scheduler)) == [(2, 0, 8)]


def test_an_answer_is_cached_with_its_prompt() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 4, max_tokens=5))
    while scheduler.num_running or scheduler.num_waiting:
        _step(scheduler)
    scheduler.submit(_request(2, [*range(100, 104), 7, 7, 7, 7, 9]))
    assert _chunks(_step(scheduler)) == [(2, 8, 1)]


def test_pages_grow_one_at_a_time() -> None:
    scheduler = Scheduler(_config())
    state = scheduler.submit(_request(1, 4))
    lengths = []
    for _ in range(6):
        _step(scheduler)
        assert state.table is not None
        lengths.append(state.table.length)
    assert lengths == [1, 2, 2, 2, 2, 3]


def test_a_request_waits_until_there_are_pages_for_it() -> None:
    scheduler = Scheduler(_config(num_pages=6))
    scheduler.submit(_request(1, 16, max_tokens=4))
    scheduler.submit(_request(2, 8, max_tokens=4))
    assert _chunks(_step(scheduler)) == [(1, 0, 16)]
    for _ in range(2):
        assert _chunks(_step(scheduler)) == []
    _step(scheduler)
    assert _chunks(_step(scheduler)) == [(2, 0, 8)]


def test_the_prefix_cache_gives_way_to_admission() -> None:
    scheduler = Scheduler(_config(num_pages=4))
    scheduler.submit(_request(1, 12, max_tokens=1))
    _step(scheduler)
    assert scheduler.memory.tree.evictable_pages == 3
    scheduler.submit(_request(2, 12, max_tokens=2))
    assert _chunks(_step(scheduler)) == [(2, 0, 12)]


def _fill_until_preemption(scheduler: Scheduler) -> Plan:
    for _ in range(20):
        plan = scheduler.step(0.0)
        if scheduler.num_preemptions:
            return plan
        _compute(scheduler, plan)
    raise AssertionError("nobody was preempted")


def test_the_latest_arrival_is_preempted_and_comes_back_first_with_its_tokens() -> None:
    scheduler = Scheduler(_config(num_pages=6, max_running_requests=2))
    first = scheduler.submit(_request(1, 7, max_tokens=14))
    second = scheduler.submit(_request(2, 7, max_tokens=14))
    scheduler.submit(_request(3, 4, max_tokens=2))
    plan = _fill_until_preemption(scheduler)
    assert _decodes(plan) == [1]
    assert (second.phase, first.phase) == (Phase.PREEMPTED, Phase.RUNNING)
    generated = second.tokens[: second.num_tokens].tolist()
    _compute(scheduler, plan)
    order: list[int] = []
    for _ in range(40):
        plan = scheduler.step(0.0)
        order += [chunk.state.request.number for chunk in plan.prefills]
        if second.table is not None and order == [2]:
            assert second.tokens[: second.num_tokens].tolist() == generated
            assert second.preemptions == 1
        _compute(scheduler, plan)
    assert order == [2, 3]
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_a_preempted_request_finds_its_own_prefix_in_the_cache() -> None:
    scheduler = Scheduler(_config(num_pages=6, max_running_requests=2))
    scheduler.submit(_request(1, 7, max_tokens=14))
    second = scheduler.submit(_request(2, 7, max_tokens=14))
    _compute(scheduler, _fill_until_preemption(scheduler))
    scheduler.release(1)
    plan = scheduler.step(0.0)
    assert [chunk.state for chunk in plan.prefills] == [second]
    assert plan.prefills[0].start >= 8


def test_a_full_pool_leaves_room_for_growth_before_it_admits() -> None:
    scheduler = Scheduler(_config(num_pages=4))
    scheduler.submit(_request(1, 8, max_tokens=4))
    scheduler.submit(_request(2, 8, max_tokens=4))
    assert _chunks(_step(scheduler)) == [(1, 0, 8)]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "field", "words"),
    [
        (70, 1, "token_ids", "token_ids has 70 tokens, the limit is 31"),
        (32, 1, "token_ids", "token_ids has 32 tokens, the limit is 31"),
        (30, 3, "max_tokens", "max_tokens is 3, the limit is 2"),
    ],
)
def test_a_request_that_can_never_fit_is_refused_at_once(prompt: int, max_tokens: int, field: str, words: str) -> None:
    scheduler = Scheduler(_config(num_pages=8, max_model_len_tokens=64))
    with pytest.raises(PromptTooLong, match=words) as caught:
        scheduler.submit(_request(1, prompt, max_tokens=max_tokens))
    assert caught.value.field == field
    assert scheduler.num_waiting == 0


def test_the_largest_request_that_fits_runs_alone() -> None:
    scheduler = Scheduler(_config(num_pages=8))
    scheduler.submit(_request(1, 30, max_tokens=2))
    assert [_compute(scheduler, scheduler.step(0.0)) for _ in range(4)] == [[], [1], [1], []]


def test_a_prompt_longer_than_the_budget_neither_blocks_the_queue_nor_spins() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 50, max_tokens=4))
    scheduler.submit(_request(2, 4, max_tokens=4))
    ended = [_compute(scheduler, scheduler.step(0.0)) for _ in range(8)]
    assert ended == [[], [], [], [1, 2], [1, 2], [1, 2], [1, 2], []]


def test_an_answer_that_is_complete_already_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="generated_token_ids has 2"):
        Scheduler(_config()).submit(_request(1, 4, max_tokens=2, generated=np.array([1, 2])))


def test_replayed_tokens_are_prefilled_with_the_prompt() -> None:
    scheduler = Scheduler(_config())
    state = scheduler.submit(_request(1, 4, max_tokens=4, generated=np.array([1, 2])))
    assert _chunks(_step(scheduler)) == [(1, 0, 6)]
    assert state.position == 3


def test_a_full_queue_refuses_one_more() -> None:
    scheduler = Scheduler(_config(max_running_requests=1, max_waiting_requests=2))
    for number in (1, 2, 3):
        scheduler.submit(_request(number, 4))
    with pytest.raises(Overloaded, match="the limit is 2"):
        scheduler.submit(_request(4, 4))
    scheduler.release(2)
    scheduler.submit(_request(5, 4))


def test_requests_that_need_not_wait_are_not_refused() -> None:
    scheduler = Scheduler(_config(max_running_requests=4, max_waiting_requests=1))
    for number in range(5):
        scheduler.submit(_request(number, 2))
    with pytest.raises(Overloaded):
        scheduler.submit(_request(5, 2))


def test_a_request_that_awaits_its_verdict_keeps_its_pages_and_is_not_planned() -> None:
    scheduler = Scheduler(_config())
    state = scheduler.submit(_request(1, 6))
    scheduler.complete(scheduler.step(0.0))
    state.awaiting = True
    used = scheduler.memory.pool.num_free
    assert scheduler.step(0.0).is_empty
    assert scheduler.memory.pool.num_free == used
    state.append(7)
    state.awaiting = False
    assert _decodes(scheduler.step(0.0)) == [1]


def test_a_paused_request_does_not_hold_up_the_others() -> None:
    scheduler = Scheduler(_config())
    one = scheduler.submit(_request(1, 4))
    scheduler.submit(_request(2, 4))
    _step(scheduler)
    one.paused = True
    assert _decodes(_step(scheduler)) == [2]
    one.paused = False
    assert _decodes(_step(scheduler)) == [1, 2]


def test_a_preempted_request_is_not_computed_again_before_its_verdict() -> None:
    scheduler = Scheduler(_config(num_pages=6, max_running_requests=2))
    scheduler.submit(_request(1, 7, max_tokens=14))
    second = scheduler.submit(_request(2, 7, max_tokens=14))
    _compute(scheduler, _fill_until_preemption(scheduler))
    second.awaiting = True
    scheduler.release(1)
    assert scheduler.step(0.0).is_empty
    second.append(7)
    second.awaiting = False
    assert [chunk.state for chunk in scheduler.step(0.0).prefills] == [second]


@pytest.mark.parametrize("steps", [0, 1, 2, 5], ids=["waiting", "prefilling", "prefilled", "decoding"])
def test_releasing_frees_all_pages_at_once(steps: int) -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 24))
    for _ in range(steps):
        _step(scheduler)
    assert scheduler.release(1) is not None
    scheduler.assert_consistent()
    assert scheduler.memory.num_available == 16
    assert scheduler.step(0.0).is_empty


def test_releasing_a_preempted_request_takes_it_out() -> None:
    scheduler = Scheduler(_config(num_pages=6, max_running_requests=2))
    scheduler.submit(_request(1, 7, max_tokens=14))
    scheduler.submit(_request(2, 7, max_tokens=14))
    _compute(scheduler, _fill_until_preemption(scheduler))
    scheduler.release(2)
    scheduler.assert_consistent()
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)


def test_releasing_twice_frees_once() -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 8))
    _step(scheduler)
    assert scheduler.release(1) is not None
    assert scheduler.release(1) is None
    scheduler.assert_consistent()


def test_ending_requests_that_share_pages_frees_each_page_once() -> None:
    scheduler = Scheduler(_config())
    prompt = list(range(12))
    scheduler.submit(_request(1, prompt))
    _step(scheduler)
    for number in (2, 3):
        scheduler.submit(_request(number, [*prompt, 50 + number]))
    _step(scheduler)
    for number in (2, 1, 3):
        scheduler.release(number)
        scheduler.assert_consistent()
    assert scheduler.memory.num_available == 16


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_request_whose_time_is_over_is_dropped_wherever_it_is(steps: int) -> None:
    scheduler = Scheduler(_config())
    scheduler.submit(_request(1, 24, deadline=10.0))
    scheduler.submit(_request(2, 4, deadline=20.0))
    for _ in range(steps):
        _step(scheduler)
    assert scheduler.next_deadline == 10.0
    plan = scheduler.step(10.0)
    assert [(failure.state.request.number, type(failure.error)) for failure in plan.failures] == [(1, DeadlineExceeded)]
    assert scheduler.next_deadline == 20.0
    _compute(scheduler, plan)


class _CountingTree(RadixTree):
    matches = 0

    def lock_match(self, tenant: str, tokens: npt.NDArray[np.int64]) -> Prefix:
        self.matches += 1
        return super().lock_match(tenant, tokens)


def test_a_queue_that_cannot_be_served_is_not_matched_again_at_every_step() -> None:
    scheduler = Scheduler(_config(num_pages=6))
    tree = scheduler.memory.tree = _CountingTree(4)
    scheduler.submit(_request(1, 15, max_tokens=6))
    scheduler.submit(_request(2, 16, max_tokens=4))
    for _ in range(5):
        _step(scheduler)
    assert tree.matches == 2
    _step(scheduler)
    assert (scheduler.num_running, tree.matches) == (0, 2)
    _step(scheduler)
    assert (scheduler.num_running, tree.matches) == (1, 3)


class _ShortestPromptFirst(RankedPolicy):
    def key(self, state: RequestState) -> float:
        return state.num_tokens


def test_the_policy_decides_the_order_of_admission() -> None:
    scheduler = Scheduler(_config(step_budget_tokens=4), _ShortestPromptFirst())
    for number, length in ((1, 4), (2, 3)):
        scheduler.submit(_request(number, length))
    assert [chunk.state.request.number for chunk in scheduler.step(0.0).prefills] == [2, 1]
