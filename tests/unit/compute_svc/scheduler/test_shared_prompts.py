"""What requests share of their prompts: whole pages, computed once."""

from __future__ import annotations

import pytest

from compute_svc.scheduler.policies.priority import PriorityFirst
from compute_svc.scheduler.scheduler import Scheduler
from tests.fakes.scheduler_steps import chunks_of, compute, request_of, small_config, step


def test_a_prompt_that_is_asked_for_several_times_is_computed_once() -> None:
    scheduler = Scheduler(small_config())
    prompt = list(range(10))
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, prompt))
    scheduler.submit(request_of(4, 5))
    plan = scheduler.step(0.0)
    assert chunks_of(plan) == [(1, 0, 10), (4, 0, 5)]
    compute(scheduler, plan)
    plan = scheduler.step(0.0)
    assert chunks_of(plan) == [(2, 8, 2), (3, 8, 2)], "but for the page that is not full"
    compute(scheduler, plan)
    scheduler.assert_consistent()


def test_prompts_that_share_less_than_a_page_do_not_wait_for_each_other() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, [1, 2, 3, 4, 5, 6]))
    scheduler.submit(request_of(2, [1, 2, 3, 7, 8]))
    plan = scheduler.step(0.0)
    assert chunks_of(plan) == [(1, 0, 6), (2, 0, 5)]
    compute(scheduler, plan)


@pytest.mark.parametrize(("priority", "chunks"), [(0, [(2, 8, 8)]), (5, [(1, 8, 8)])])
def test_nobody_waits_for_one_of_a_worse_rank(priority: int, chunks: list[tuple[int, int, int]]) -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=8), PriorityFirst())
    prompt = list(range(20))
    scheduler.submit(request_of(1, prompt, priority=5))
    assert chunks_of(step(scheduler)) == [(1, 0, 8)]
    scheduler.submit(request_of(2, prompt, priority=priority))
    assert chunks_of(step(scheduler)) == chunks


@pytest.mark.parametrize("happens", ["leaves", "is preempted", "pauses"])
def test_nobody_waits_for_one_that_does_not_go_on(happens: str) -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=8, max_running_requests=8))
    prompt = list(range(20))
    first = scheduler.submit(request_of(1, prompt))
    scheduler.submit(request_of(2, prompt))
    assert chunks_of(step(scheduler)) == [(1, 0, 8)]
    if happens == "leaves":
        scheduler.release(1)
    elif happens == "pauses":
        first.paused = True
    else:
        scheduler._preempt_last(0.0)
        first.paused = True
    assert chunks_of(step(scheduler))[0] == (2, 8, 8)
    scheduler.assert_consistent()


def test_nothing_is_remembered_of_who_led_or_waited_and_has_left() -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=12))
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, list(range(20))))
    assert chunks_of(step(scheduler)) == [(1, 0, 12)]
    assert scheduler.followers.num_known == 1, "one leads"
    assert chunks_of(step(scheduler)) == [(1, 12, 8)]
    assert scheduler.followers.num_known == 2, "two have waited"
    for number in (2, 1, 3):
        scheduler.release(number)
    assert scheduler.followers.num_known == 0
    scheduler.submit(request_of(4, [*range(30, 50)]))
    step(scheduler)
    scheduler.release(4)
    assert scheduler.followers.num_known == 0


def test_only_uncached_tokens_count_against_the_budget() -> None:
    scheduler = Scheduler(small_config())
    prompt = list(range(16))
    scheduler.submit(request_of(1, prompt))
    step(scheduler)
    scheduler.submit(request_of(2, [*prompt, 50, 51]))
    scheduler.submit(request_of(3, 13))
    plan = step(scheduler)
    assert chunks_of(plan) == [(2, 16, 2), (3, 0, 13)]
    assert plan.prefills[0].state.cached_tokens == 16
    assert scheduler.num_cached_tokens == 16


def test_the_last_prompt_token_is_always_computed() -> None:
    scheduler = Scheduler(small_config())
    prompt = list(range(8))
    scheduler.submit(request_of(1, prompt, max_tokens=1))
    step(scheduler)
    scheduler.submit(request_of(2, prompt, max_tokens=1))
    assert chunks_of(step(scheduler)) == [(2, 4, 4)]


def test_another_tenants_prefix_is_computed_again() -> None:
    scheduler = Scheduler(small_config())
    prompt = list(range(8))
    scheduler.submit(request_of(1, prompt, max_tokens=1, tenant="one"))
    step(scheduler)
    scheduler.submit(request_of(2, prompt, max_tokens=1, tenant="two"))
    assert chunks_of(step(scheduler)) == [(2, 0, 8)]


def test_an_answer_is_cached_with_its_prompt() -> None:
    scheduler = Scheduler(small_config())
    scheduler.submit(request_of(1, 4, max_tokens=5))
    while scheduler.num_running or scheduler.num_waiting:
        step(scheduler)
    scheduler.submit(request_of(2, [*range(100, 104), 7, 7, 7, 7, 9]))
    assert chunks_of(step(scheduler)) == [(2, 8, 1)]
