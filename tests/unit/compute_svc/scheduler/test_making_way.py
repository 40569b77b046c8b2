"""Who is preempted for a better request, and who is not because it would not help."""

from __future__ import annotations

from compute_svc.scheduler.base import Phase
from compute_svc.scheduler.policies.priority import PriorityFirst
from tests.fakes.asked_scheduler import Asked


def test_nobody_is_preempted_for_a_request_that_would_not_fit_even_so() -> None:
    asked = Asked(PriorityFirst(), running=4, pages=16)
    asked.ask(28, 20, priority=0)
    low = asked.ask(8, 20, priority=1)
    for _ in range(2):
        asked.step()
    asked.ask(40, 4, priority=0)
    assert low in asked.step().decodes
    assert asked.scheduler.num_preemptions == 0


def test_nobody_is_preempted_whose_pages_are_shared_with_one_that_stays() -> None:
    asked = Asked(PriorityFirst(), running=5, pages=16)
    shared = list(range(24))
    stays = asked.ask([*shared, 100], 20, priority=0)
    asked.step()
    low = [asked.ask([*shared, 101 + index], 20, priority=1) for index in range(3)]
    for _ in range(3):
        asked.step()
    asked.ask(40, 4, priority=0)
    for _ in range(3):
        asked.step()
    assert {state.phase for state in [stays, *low]} == {Phase.RUNNING}, "six pages are shared, so that only three would become free"
    assert asked.scheduler.num_preemptions == 0


def test_shared_pages_become_free_when_all_that_hold_them_give_way() -> None:
    asked = Asked(PriorityFirst(), running=5, pages=16)
    shared = list(range(24))
    low = []
    for index in range(2):
        low.append(asked.ask([*shared, 101 + index], 20, priority=1))
        asked.step()
    high = asked.ask(60, 4, priority=0)
    asked.step()
    assert high.phase is Phase.RUNNING
    assert [state.phase for state in low] == [Phase.PREEMPTED] * 2
    assert asked.scheduler.num_preemptions == 2


def test_a_request_is_not_charged_for_pages_that_who_stays_has_too() -> None:
    asked = Asked(PriorityFirst(), running=3, pages=16)
    shared = list(range(40))
    asked.ask([*shared, 100], 20, priority=0)
    for _ in range(2):
        asked.step()
    low = asked.ask(12, 20, priority=1)
    asked.step()
    high = asked.ask([*shared, 101, 102, 103, 104, 105], 4, priority=0)
    asked.step()
    assert (low.phase, high.phase) == (Phase.PREEMPTED, Phase.RUNNING)
    assert asked.scheduler.num_preemptions == 1
