"""The scheduler where requests, pages and time just suffice, and what it tells its policy and its predictor."""

from __future__ import annotations

import pytest

from compute_svc.scheduler.base import Phase, Plan, PlanFailed, RequestState
from compute_svc.scheduler.length_predictor import LengthPredictor
from compute_svc.scheduler.policies.first_come import FirstComeFirstServed
from compute_svc.scheduler.policies.priority import PriorityFirst
from compute_svc.scheduler.scheduler import Scheduler
from compute_svc.wire.request import Request
from tests.fakes.scheduler_steps import chunks_of, compute, decodes_of, request_of, small_config, step
from triserve.rpc.errors import Overloaded, PromptTooLong


def test_who_waits_and_who_runs_is_counted_apart() -> None:
    scheduler = Scheduler(small_config(max_running_requests=3))
    states = [scheduler.submit(request_of(number, 4)) for number in range(1, 6)]
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.running) == (0, 5, [])
    assert [state.arrival for state in states] == [1, 2, 3, 4, 5]
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (3, 2)
    assert scheduler.running == states[:3]
    scheduler._preempt_last(0.0)
    scheduler._preempt_last(0.0)
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_preemptions) == (1, 4, 2)
    assert (states[2].phase, states[2].preemptions, states[0].preemptions) == (Phase.PREEMPTED, 1, 0)
    scheduler.running.clear()
    assert scheduler.num_running == 1, "what is returned is a copy"


def test_a_preempted_request_has_a_place_in_the_queue_whether_it_runs_again_or_not() -> None:
    scheduler = Scheduler(small_config(max_running_requests=2, max_waiting_requests=1))
    for number in (1, 2):
        scheduler.submit(request_of(number, 4))
    step(scheduler)
    scheduler._preempt_last(0.0)
    scheduler.submit(request_of(3, 4))
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    with pytest.raises(Overloaded, match=r"^2 requests are waiting, the limit is 1$"):
        scheduler.submit(request_of(4, 4))
    step(scheduler)
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    with pytest.raises(Overloaded, match=r"^1 requests are waiting, the limit is 1$"):
        scheduler.submit(request_of(5, 4))


class _Predictor(LengthPredictor):
    """Expects three tokens, and remembers what it is told."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.observed: list[tuple[int, int]] = []

    def predict(self, request: Request) -> int:
        """Three."""
        self.asked.append(request.number)
        return 3

    def observe(self, request: Request, answer_tokens: int) -> None:
        """Remembers it."""
        self.observed.append((request.number, answer_tokens))


def test_the_predictor_learns_from_every_answer_that_has_a_token() -> None:
    predictor = _Predictor()
    scheduler = Scheduler(small_config(max_running_requests=2), predictor=predictor)
    states = [scheduler.submit(request_of(number, 4, max_tokens=8)) for number in (1, 2, 3)]
    assert [state.predicted_tokens for state in states] == [3, 3, 3]
    for _ in range(2):
        step(scheduler)
    assert predictor.asked == [1, 2, 3, 1, 2], "again when it is admitted"
    scheduler.release(1)
    scheduler.release(3)
    scheduler.release(99)
    scheduler.fail(2)
    scheduler.submit(request_of(4, 4, max_tokens=8))
    step(scheduler)
    scheduler.release(4)
    assert predictor.observed == [(1, 2), (4, 1)], "not from one without a token, nor from one that failed"


def test_what_runs_again_is_not_predicted_again() -> None:
    predictor = _Predictor()
    scheduler = Scheduler(small_config(), predictor=predictor)
    state = scheduler.submit(request_of(1, 4, max_tokens=8))
    step(scheduler)
    scheduler._preempt_last(0.0)
    state.predicted_tokens = 7
    step(scheduler)
    assert (state.phase, state.predicted_tokens, predictor.asked) == (Phase.RUNNING, 7, [1, 1])


class _Failing(FirstComeFirstServed):
    """Cannot say who is next."""

    def first(self, now: float) -> RequestState | None:
        """Fails."""
        raise ArithmeticError("no order")


def test_a_policy_that_fails_fails_the_step_which_tells_of_those_whose_time_was_over() -> None:
    scheduler = Scheduler(small_config(), _Failing())
    scheduler.submit(request_of(1, 4, deadline=5.0))
    scheduler.submit(request_of(2, 4, deadline=9.0))
    assert scheduler.next_deadline == 5.0
    with pytest.raises(PlanFailed) as raised:
        scheduler.step(7.0)
    assert [failure.state.request.number for failure in raised.value.failures] == [1]
    assert isinstance(raised.value.__cause__, ArithmeticError)
    assert scheduler.next_deadline == 9.0


def test_time_is_over_at_the_deadline_and_not_before() -> None:
    scheduler = Scheduler(small_config())
    assert scheduler.next_deadline is None
    for number, deadline in ((1, 3.0), (2, 2.0), (3, 4.0)):
        scheduler.submit(request_of(number, 4, deadline=deadline))
    assert scheduler.step(1.75).failures == []
    assert [failure.state.request.number for failure in scheduler.step(2.0).failures] == [2]
    assert [failure.state.request.number for failure in scheduler.step(7.5).failures] == [1, 3]
    assert scheduler.next_deadline is None


class _Turning(FirstComeFirstServed):
    """The oldest becomes the last one at the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 0

    def account(self, plan: Plan) -> bool:
        """Changes the rank of the first."""
        self.num_steps += 1
        if self.num_steps == 2:
            plan.decodes[0].rank = (1.0, 0)
        return self.num_steps == 2


def test_running_requests_are_in_the_order_their_policy_gives_them_now() -> None:
    scheduler = Scheduler(small_config(), _Turning())
    states = [scheduler.submit(request_of(number, 4)) for number in (1, 2, 3)]
    step(scheduler)
    assert scheduler.running == states
    step(scheduler)
    assert scheduler.running == [states[1], states[2], states[0]]
    assert decodes_of(step(scheduler)) == [2, 3, 1]


@pytest.mark.parametrize(("tokens", "cached"), [(8, 4), (9, 8), (6, 4), (5, 4), (4, 0), (12, 8)])
def test_a_policy_counts_as_cached_whole_pages_of_all_but_the_last_token(tokens: int, cached: int) -> None:
    policy = _Turning()
    scheduler = Scheduler(small_config(), policy)
    prompt = list(range(12))
    scheduler.submit(request_of(1, prompt[:8], max_tokens=1))
    step(scheduler)
    state = scheduler.submit(request_of(2, prompt[:tokens]))
    assert policy.cached_tokens(state) == cached
    scheduler.step(0.0)
    assert (state.cached_tokens, scheduler.num_cached_tokens) == (cached, cached)


def test_a_request_that_finds_no_page_when_it_is_the_last_one_gives_up_its_own() -> None:
    scheduler = Scheduler(small_config(num_pages=4))
    first, last = scheduler.submit(request_of(1, 3, max_tokens=13)), scheduler.submit(request_of(2, 4, max_tokens=12))
    for _ in range(5):
        step(scheduler)
    assert (first.table is not None and first.table.length, last.table is not None and last.table.length) == (2, 2)
    plan = scheduler.step(0.0)
    assert (decodes_of(plan), last.phase, scheduler.num_preemptions) == ([1], Phase.PREEMPTED, 1)
    compute(scheduler, plan)


def test_a_long_prompt_that_came_between_does_not_hold_up_decoding() -> None:
    scheduler = Scheduler(small_config(), PriorityFirst())
    scheduler.submit(request_of(1, 4, priority=1))
    step(scheduler)
    scheduler.submit(request_of(2, 40))
    plan = step(scheduler)
    assert (decodes_of(plan), chunks_of(plan)) == ([1], [(2, 0, 15)])
    plan = step(scheduler)
    assert (decodes_of(plan), chunks_of(plan)) == ([1], [(2, 15, 15)])
    assert [state.request.number for state in scheduler.running] == [2, 1]


def test_nobody_gives_way_to_a_better_priority_that_has_room() -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=4), PriorityFirst())
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, 1, priority=5))
    step(scheduler)
    scheduler.submit(request_of(4, 1))
    plan = step(scheduler)
    assert (decodes_of(plan), chunks_of(plan), scheduler.num_preemptions) == ([1, 2, 3], [(4, 0, 1)], 0)


def test_what_who_gave_way_would_have_computed_is_there_for_others() -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=8, max_running_requests=3), PriorityFirst())
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, 2, priority=5))
    step(scheduler)
    scheduler.submit(request_of(4, 2))
    scheduler.submit(request_of(5, 20))
    plan = step(scheduler)
    # Two rows make way one after the other; one decode row and the first prompt leave five tokens.
    assert (decodes_of(plan), chunks_of(plan), scheduler.num_preemptions) == ([1], [(4, 0, 2), (5, 0, 5)], 2)


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param(4, id="while it decodes"),
        pytest.param(40, id="while its prompt is computed"),
    ],
)
def test_a_request_under_a_window_drops_what_nobody_sees(prompt: int) -> None:
    scheduler = Scheduler(small_config(num_pages=12, step_budget_tokens=8, window_tokens=5, chunk_tokens=8))
    state = scheduler.submit(request_of(1, prompt, max_tokens=60 - prompt))
    longest = 0
    while scheduler.num_running or scheduler.num_waiting:
        step(scheduler)
        assert state.phase is Phase.ENDED or state.kv_length <= 5 + 2 * 8 + 8
        longest = max(longest, state.dropped_tokens)
    assert longest == 40
    assert scheduler.memory.num_available == 12


def test_the_check_notices_a_request_that_has_computed_more_than_its_pages_hold() -> None:
    scheduler = Scheduler(small_config())
    state = scheduler.submit(request_of(1, 4))
    step(scheduler)
    scheduler.assert_consistent()
    state.num_computed += 1 + 4
    with pytest.raises(AssertionError):
        scheduler.assert_consistent()


@pytest.mark.parametrize("wait", [0, 1], ids=["in the queue", "blocked"])
def test_who_leaves_while_it_waits_is_forgotten(wait: int) -> None:
    scheduler = Scheduler(small_config(step_budget_tokens=8))
    prompt = list(range(20))
    scheduler.submit(request_of(1, prompt))
    second = scheduler.submit(request_of(2, prompt))
    for _ in range(wait):
        step(scheduler)
    assert scheduler.release(2) is second
    assert (second.phase, scheduler.find(2), scheduler.num_waiting) == (Phase.ENDED, None, 1 - wait)
    scheduler.assert_consistent()
    for _ in range(12):
        step(scheduler)
    assert scheduler.num_running == scheduler.num_waiting == 0


class _Yielding(FirstComeFirstServed):
    """Requests of some numbers make way for anybody."""

    preempts = True

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def yields(self, running: RequestState, waiting: RequestState) -> bool:
        """Whether it is one of them."""
        return running.request.number in self.numbers


def test_nobody_makes_way_for_one_of_a_worse_rank_whatever_the_policy_says() -> None:
    scheduler = Scheduler(small_config(max_running_requests=2), _Yielding(1, 2, 3))
    for number in (1, 2, 3):
        scheduler.submit(request_of(number, 4))
    for _ in range(3):
        step(scheduler)
    assert ([state.request.number for state in scheduler.running], scheduler.num_preemptions) == ([1, 2], 0)


@pytest.mark.parametrize(("num_pages", "running"), [(13, [2, 3, 4]), (14, [2, 3, 4]), (15, [1, 2, 3])])
def test_pages_behind_one_that_does_not_make_way_are_out_of_reach(num_pages: int, running: list[int]) -> None:
    scheduler = Scheduler(small_config(num_pages=num_pages), _Yielding(2, 4))
    late = scheduler.submit(request_of(1, 20))
    late.paused = True
    for number in (2, 3, 4):
        scheduler.submit(request_of(number, 12))
    step(scheduler)
    step(scheduler)
    assert [state.request.number for state in scheduler.running] == [2, 3, 4]
    late.paused = False
    step(scheduler)
    # It needs 5 pages and one for each that stays; there are those that are free and 4 of the last one.
    assert ([state.request.number for state in scheduler.running], scheduler.num_preemptions) == (running, num_pages == 15)


class _PromptsFirst(PriorityFirst):
    """Does not overtake prompts that are being computed."""

    overtakes = False


def test_the_chunk_of_a_prompt_that_makes_way_is_not_computed() -> None:
    scheduler = Scheduler(small_config(max_running_requests=2), _PromptsFirst())
    scheduler.submit(request_of(1, 4, priority=1))
    scheduler.submit(request_of(2, 20, priority=5))
    assert chunks_of(step(scheduler)) == [(1, 0, 4), (2, 0, 12)]
    scheduler.submit(request_of(3, 20))
    plan = step(scheduler)
    assert (decodes_of(plan), chunks_of(plan)) == ([1], [(3, 0, 15)])
    assert [state.request.number for state in scheduler.running] == [3, 1]


def test_of_three_that_need_a_page_when_there_are_two_the_last_one_gives_up_its_own() -> None:
    scheduler = Scheduler(small_config(num_pages=5))
    states = [scheduler.submit(request_of(number, 4)) for number in (1, 2, 3)]
    step(scheduler)
    plan = scheduler.step(0.0)
    assert (decodes_of(plan), scheduler.running, scheduler.num_preemptions) == ([1, 2], states[:2], 1)
    compute(scheduler, plan)


def test_an_answer_that_does_not_fit_behind_its_prompt_is_told_how_long_it_may_be() -> None:
    with pytest.raises(
        PromptTooLong, match=r"^max_tokens is 55, the limit is 54: prompt and answer share 64 tokens and the prompt has 10$"
    ):
        Scheduler(small_config()).submit(request_of(1, 10, max_tokens=55))
