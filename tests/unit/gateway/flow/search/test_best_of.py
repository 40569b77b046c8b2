"""Of several answers that are drawn, those come back whose tokens are likeliest on average."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from gateway.flow.call import Wishes
from gateway.flow.generations.answer import Delta, Started
from gateway.flow.generations.generation import Usage
from gateway.flow.search.best_of import mean_logprob
from gateway.flow.search.kinds import BestOf
from tests.fakes.fake_stages import FakeAttempt, FakeReplica
from tests.fakes.search_scene import SearchScene
from triserve.rpc.errors import InvalidRequest, Overloaded, Unavailable
from triserve.rpc.sampling import choice_seed
from triserve.v1 import sampler_pb2


def entries(*logprobs: float) -> list[sampler_pb2.TokenLogprobs]:
    return [sampler_pb2.TokenLogprobs(logprob=logprob, token=97, text="a", token_bytes=b"a") for logprob in logprobs]


def drawn(*answers: Sequence[float]) -> FakeReplica:
    """A replica whose answers have these log-probabilities, one answer's after the other's; each says its number."""
    replica = FakeReplica("one")

    def play(attempt: FakeAttempt) -> None:
        number = len(replica.attempts) - 1
        logprobs = answers[number % len(answers)]
        attempt.answer.begin(Started(2, 3000, 7000))
        attempt.answer.push(0, [97] * len(logprobs) + [7], str(number), "stop", entries(*logprobs), now=0.0)

    replica.play = play
    return replica


async def test_the_n_whose_mean_log_probability_is_highest_come_best_first() -> None:
    # A sum would prefer the second and the fourth; means are -2, -3, -1, -3.
    scene = SearchScene(drawn([-2.0] * 4, [-3.0], [-1.0] * 9, [-3.0]))
    answered = await scene.answer((5, 6), n=2, search=BestOf(width=4))
    assert answered.texts == ["2", "0"]
    assert answered.usage == Usage(2, 5 + 2 + 10 + 2, 2)
    assert answered.cache == "bypass"
    assert not answered.answers[0].logprobs and not answered.answers[1].logprobs


async def test_equals_come_in_the_order_in_which_they_are_drawn_and_an_answer_of_nothing_last() -> None:
    scene = SearchScene(drawn([], [-1.0], [-1.0, -1.0], [-1.0]))
    assert (await scene.answer((5,), n=4, search=BestOf(width=4))).texts == ["1", "2", "3", "0"]
    assert mean_logprob(Delta("", [7], [], "stop")) == -math.inf


async def test_each_prompt_has_its_own_best_and_log_probabilities_are_there_for_who_asks() -> None:
    scene = SearchScene(drawn([-2.0], [-1.0], [-3.0], [-4.0]))
    answered = await scene.answer((5,), (6,), search=BestOf(width=2), wishes=Wishes(top_logprobs=0))
    assert answered.texts == ["1", "2"]
    assert [[one.logprob for one in delta.logprobs] for delta in answered.answers.values()] == [[-1.0], [-3.0]]


async def test_what_is_drawn_is_what_as_large_an_n_would_draw() -> None:
    scene = SearchScene(replica := drawn([-1.0]))
    await scene.answer((5,), search=BestOf(width=3), wishes=Wishes(seed=9))
    assert [one.request.sampling.seed for one in replica.attempts] == [9, choice_seed(9, 1), choice_seed(9, 2)]
    assert {one.request.sampling.top_logprobs for one in replica.attempts} == {0}


async def test_such_answers_are_neither_kept_nor_taken_from_the_cache() -> None:
    scene = SearchScene(replica := drawn([-1.0]))
    for _ in range(2):
        await scene.answer((5,), wishes=Wishes(temperature=0))
    assert len(replica.attempts) == 1
    for _ in range(2):
        await scene.answer((5,), search=BestOf(width=2), wishes=Wishes(temperature=0))
    assert len(replica.attempts) == 5


async def test_a_lost_answer_is_drawn_again() -> None:
    first, second = FakeReplica("one"), drawn([-1.0])
    first.play = lambda attempt: attempt.answer.fail(Unavailable("the compute process was lost"))
    scene = SearchScene(first, second)
    assert len((await scene.answer((5,), search=BestOf(width=2))).answers) == 1
    assert scene.count("triserve_retries_total", stage="compute") == 2


async def test_each_answer_that_is_drawn_takes_a_place() -> None:
    scene = SearchScene(drawn([-1.0]), places=3)
    assert isinstance(await scene.refusal((5,), search=BestOf(width=4)), Overloaded)
    await scene.answer((5,), search=BestOf(width=3))


@pytest.mark.parametrize(("n", "width"), [(3, 2), (1, 17), (1, 0), (1, -1)])
async def test_a_count_that_is_less_than_n_or_more_than_may_be_is_refused(n: int, width: int) -> None:
    error = await SearchScene().refusal((5,), n=n, search=BestOf(width=width))
    assert isinstance(error, InvalidRequest) and error.field == "best_of"
    assert error.message == f"best_of is {width}, the range is [{n}, 16]: from n to the limit"


async def test_streams_are_refused_and_so_are_too_many_answers_to_all_prompts() -> None:
    streamed = await SearchScene().refusal((5,), search=BestOf(width=2), stream=True)
    assert isinstance(streamed, InvalidRequest) and streamed.field == "best_of"
    many = await SearchScene(max_choices=9).refusal((5,), (6,), search=BestOf(width=5))
    assert many.message == "best_of is 5 for 2 prompts, the limit on answers is 9"


async def test_it_counts_as_one_request_and_its_answers_as_those_that_are_returned() -> None:
    scene = SearchScene(drawn([-1.0]))
    await scene.answer((5,), search=BestOf(width=3))
    assert scene.count("triserve_requests_total", route="completions", outcome="ok") == 1
    assert scene.count("triserve_answers_total", finish_reason="stop") == 1
    assert scene.count("triserve_search_requests_total", kind="best_of") == 3
    assert scene.count("triserve_completion_tokens_total") == 6
    assert scene.count("triserve_time_to_first_token_seconds_count") == 0
