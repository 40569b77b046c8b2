"""An answer takes in every delta once, in order, however they are cut, merged or repeated."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.generations.answer import Answer, Delta, Started
from triserve.rpc.errors import Internal, Unavailable
from triserve.v1 import sampler_pb2

Cut = tuple[int, str]


def make(*, every_delta: bool = True, **more: Any) -> tuple[Answer, list[int]]:
    told: list[int] = []
    return Answer(3, lambda answer: told.append(answer.index), every_delta=every_delta, **more), told


@st.composite
def cut_answers(draw: st.DrawFn) -> list[Cut]:
    """An answer as deltas of some tokens each, and their text."""
    return draw(st.lists(st.tuples(st.integers(1, 4), st.text(max_size=5)), min_size=1, max_size=20))


@given(cut_answers(), st.data())
def test_any_cut_with_repeats_and_any_reader_gives_the_same_answer(cuts: list[Cut], data: st.DataObject) -> None:
    teed: list[tuple[str, tuple[int, ...], str | None]] = []
    answer, _ = make(tee=lambda *delta: teed.append(delta))
    taken: list[Delta] = []
    sent: list[tuple[int, list[int], str]] = []
    position = 0
    for index, (count, text) in enumerate(cuts):
        delta = (position, list(range(position, position + count)), text)
        sent.append(delta)
        answer.push(*delta, "stop" if index == len(cuts) - 1 else None, now=0.0)
        position += count
        for first, tokens, words in data.draw(st.lists(st.sampled_from(sent), max_size=3)):
            answer.push(first, tokens, words, data.draw(st.sampled_from([None, "stop"])), now=0.0)
        if data.draw(st.booleans()) and (delta_taken := answer.take()) is not None:
            taken.append(delta_taken)
    if (rest := answer.take()) is not None:
        taken.append(rest)
    assert "".join(delta.text for delta in taken) == "".join(text for _, text in cuts)
    assert [token for delta in taken for token in delta.token_ids] == answer.token_ids == list(range(position))
    assert [delta.finish_reason for delta in taken] == [None] * (len(taken) - 1) + ["stop"]
    assert answer.error is None
    assert [(text, tokens) for text, tokens, _ in teed] == [(text, tuple(tokens)) for _, tokens, text in sent]
    assert [finish for _, _, finish in teed] == [None] * (len(sent) - 1) + ["stop"]
    assert answer.take() is None


@given(st.integers(0, 5), st.integers(0, 9), st.integers(0, 5))
def test_a_delta_that_is_neither_next_nor_old_fails_the_answer(have: int, first: int, count: int) -> None:
    answer, told = make()
    if have:
        answer.push(0, list(range(have)), "x", now=0.0)
    answer.push(first, list(range(first, first + count)), "y", now=0.0)
    is_old = first < have and first + count <= have
    if first == have:
        assert answer.error is None
        assert len(answer.token_ids) == have + count
    elif is_old:
        assert answer.error is None
        assert len(answer.token_ids) == have
    else:
        assert type(answer.error) is Internal
        assert told[-1] == 3


def test_a_long_answer_goes_on_as_a_short_one() -> None:
    answer, _ = make()
    for first in (0, 1000, 2000):
        answer.push(first, range(first, first + 1000), "x", now=0.0)
    assert (len(answer.token_ids), answer.error) == (3000, None)


def test_a_delta_of_tokens_alone_or_of_text_alone_can_be_taken() -> None:
    answer, _ = make()
    answer.push(0, [1], "", now=0.0)
    assert answer.take() == Delta("", [1], [], None)
    answer.push(1, [], "he", now=0.0)
    assert answer.take() == Delta("he", [], [], None)
    answer.push(1, [], "", "stop", now=0.0)
    assert answer.take() == Delta("", [], [], "stop")
    assert answer.take() is None


def test_held_back_text_may_come_without_a_token() -> None:
    answer, _ = make()
    answer.push(0, [1], "he", now=0.0)
    answer.push(1, [], "llo", "stop", now=0.0)
    delta = answer.take()
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.finish_reason) == ("hello", [1], "stop")


def test_what_came_before_an_error_can_be_taken_and_nothing_after_it_comes() -> None:
    answer, told = make()
    answer.push(0, [1], "a", now=0.0)
    answer.fail(Unavailable("lost"))
    answer.push(1, [2], "b", now=0.0)
    answer.fail(Unavailable("lost again"))
    delta = answer.take()
    assert delta is not None
    assert delta.text == "a"
    assert answer.take() is None
    assert answer.error is not None
    assert answer.error.message == "lost"
    assert len(told) == 2


def test_an_error_after_the_finish_changes_nothing() -> None:
    answer, _ = make()
    answer.push(0, [1], "a", "length", now=0.0)
    answer.fail(Unavailable("lost"))
    assert answer.error is None


def test_a_reader_of_whole_answers_is_told_of_the_end_alone() -> None:
    answer, told = make(every_delta=False)
    answer.push(0, [1], "a", now=0.0)
    answer.push(1, [2], "b", now=0.0)
    assert told == []
    answer.push(2, [3], "c", "stop", now=0.0)
    assert told == [3]
    delta = answer.take()
    assert delta is not None
    assert delta.text == "abc"


def test_log_probabilities_stay_with_their_tokens_when_deltas_are_merged() -> None:
    answer, _ = make()
    for position in range(3):
        answer.push(position, [position], "x", logprobs=[sampler_pb2.TokenLogprobs(logprob=-position)], now=0.0)
    delta = answer.take()
    assert delta is not None
    assert [one.logprob for one in delta.logprobs] == [0, -1, -2]
    assert answer.take() is None


def test_times_are_of_the_first_and_the_latest_delta() -> None:
    answer, _ = make()
    assert (answer.first_at, answer.last_at) == (0.0, 0.0)
    answer.push(0, [1], "a", now=5.0)
    answer.push(1, [2], "b", now=7.0)
    answer.push(0, [1], "a", now=9.0)
    assert (answer.first_at, answer.last_at) == (5.0, 7.0)


def test_an_answer_of_which_nothing_was_taken_can_be_resumed_and_another_cannot() -> None:
    answer, _ = make()
    answer.begin(Started(1, 2, 3))
    answer.fail(Unavailable("lost"))
    answer.resume()
    assert (answer.error, answer.started, answer.ended) == (None, None, False)
    answer.begin(Started(4, 5, 6))
    answer.push(0, [1], "a", now=0.0)
    answer.fail(Unavailable("lost"))
    answer.resume()
    answer.begin(Started(7, 8, 9))
    assert answer.started == Started(4, 5, 6)
    answer.push(1, [2], "b", now=0.0)
    assert answer.take() == Delta("ab", [1, 2], [], None)
    with pytest.raises(AssertionError, match="not resumed"):
        answer.resume()


def test_an_answer_that_was_begun_by_another_goes_on_behind_its_tokens() -> None:
    answer, _ = make(begun=[5, 6])
    answer.push(0, [5, 6], "again", now=0.0)
    answer.push(2, [7], "on", "stop", now=0.0)
    assert answer.take() == Delta("on", [7], [], "stop") and answer.token_ids == [5, 6, 7]


def test_an_answer_that_is_made_anew_forgets_what_came() -> None:
    answer, _ = make()
    answer.push(0, [1], "a", logprobs=[sampler_pb2.TokenLogprobs(logprob=-1)], now=0.0)
    answer.fail(Unavailable("lost"))
    answer.resume(anew=True)
    assert (answer.blank, answer.token_ids, answer.ended) == (True, [], False)
    answer.push(0, [1, 2], "ab", "stop", logprobs=[sampler_pb2.TokenLogprobs(logprob=-1), sampler_pb2.TokenLogprobs(logprob=-2)], now=0.0)
    delta = answer.take()
    assert delta is not None
    assert (delta.text, delta.token_ids, [one.logprob for one in delta.logprobs]) == ("ab", [1, 2], [-1, -2])


def test_log_probabilities_of_a_prompt_come_with_the_first_delta_and_again_with_another_attempt() -> None:
    first, second = (sampler_pb2.TokenLogprobs(token=token) for token in (1, 2))
    answer = Answer(0, lambda one: None, every_delta=True)
    answer.tell_prompt(0, [first])
    answer.fail(Unavailable("lost"))
    answer.resume(anew=True)
    answer.tell_prompt(0, [first])
    answer.tell_prompt(1, [second])
    assert answer.take() is None
    answer.push(0, [7], "a", now=1.0)
    answer.push(1, [8], "b", "stop", now=2.0)
    delta = answer.take()
    assert delta is not None and (delta.text, delta.prompt_logprobs) == ("ab", (first, second))


def test_a_gap_in_what_is_told_of_a_prompt_fails_the_answer() -> None:
    answer = Answer(0, lambda one: None, every_delta=True)
    answer.tell_prompt(1, [sampler_pb2.TokenLogprobs()])
    assert isinstance(answer.error, Internal)
