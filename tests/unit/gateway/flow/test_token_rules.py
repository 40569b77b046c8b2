"""Allowed, banned and bad: every list is bounded, a set, and leaves something to draw; strings go to the tokenizer where they matter."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gateway.flow.call import Wishes
from gateway.flow.limits import Limits
from gateway.flow.resolve import resolve_sampling
from gateway.flow.token_rules import DEFAULT_BREAKERS, check_something_is_left, sampling_strings
from tests.fakes.fake_stages import MODEL
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, tokenizer_pb2

WIDTH = MODEL.logits_width
WORD = common_pb2.TokenSequence


def sampling(ids: tokenizer_pb2.SamplingIds | None = None, /, **wishes: Any) -> common_pb2.SamplingParams:
    return resolve_sampling(Wishes(**{"temperature": 0.0, **wishes}), MODEL, Limits(), ids)


def refusal(**wishes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        sampling_strings(Wishes(**wishes))
        sampling(**wishes)
    return caught.value


def test_nothing_is_asked_of_the_tokenizer_where_nothing_needs_it() -> None:
    wishes: dict[str, Any]
    for wishes in (
        {},
        {"dry_multiplier": 0.0},
        {"dry_sequence_breakers": ("x",)},
        {"dry_multiplier": 0.0, "dry_sequence_breakers": ("x",)},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": ()},
        {"dry_multiplier": 1.0, "dry_breaker_ids": (3,)},
        {"bad_word_ids": ((1, 2),), "allowed_token_ids": (1,), "banned_token_ids": (2,)},
    ):
        assert sampling_strings(Wishes(**wishes)) is None, wishes


def test_dry_has_the_usual_breakers_unless_others_are_given() -> None:
    def breakers(**wishes: Any) -> list[str]:
        found = sampling_strings(Wishes(dry_multiplier=0.8, **wishes))
        assert found is not None
        return list(found.dry_sequence_breakers)

    assert breakers() == list(DEFAULT_BREAKERS) == ["\n", ":", '"', "*"]
    assert breakers(dry_sequence_breakers=("。", "ab")) == ["。", "ab"]
    assert breakers(dry_sequence_breakers=("x",), dry_breaker_ids=(3,)) == ["x"]


def test_bad_words_go_to_the_tokenizer_as_they_are() -> None:
    found = sampling_strings(Wishes(bad_words=("a", " b", "a")))
    assert found == tokenizer_pb2.SamplingStrings(bad_words=["a", " b", "a"])


@pytest.mark.parametrize(
    ("field", "most", "most_chars"),
    [
        ("bad_words", contract.MAX_BAD_WORD_STRINGS, contract.MAX_BAD_WORD_CHARS),
        ("dry_sequence_breakers", contract.MAX_DRY_BREAKERS, contract.MAX_DRY_BREAKER_CHARS),
    ],
)
def test_strings_are_bounded_in_number_and_length_before_the_tokenizer_sees_them(field: str, most: int, most_chars: int) -> None:
    allowed: dict[str, Any] = {field: ("é" * most_chars,) * most}
    sampling_strings(Wishes(**allowed))
    for strings, what in (
        (("x",) * (most + 1), f"{field} has {most + 1} entries, the limit is {most}"),
        (("x" * (most_chars + 1),), f"{field} has a string of {most_chars + 1} characters, the range is [1, {most_chars}]"),
        (("",), f"{field} has a string of 0 characters, the range is [1, {most_chars}]"),
    ):
        error = refusal(**{field: strings})
        assert (error.field, error.message) == (field, what)


LISTS = ["allowed_token_ids", "banned_token_ids", "dry_breaker_ids"]


@pytest.mark.parametrize("field", LISTS)
def test_a_list_of_ids_is_a_set_in_rising_order(field: str) -> None:
    params = sampling(dry_multiplier=1.0, **{field: (5, 2, 5, WIDTH - 1)})
    assert list(getattr(params, field)) == [2, 5, WIDTH - 1]


@pytest.mark.parametrize("field", LISTS)
@pytest.mark.parametrize("token", [-1, WIDTH, 10**60])
def test_every_listed_id_is_below_the_logits_width(field: str, token: int) -> None:
    error = refusal(**{field: (0, token)})
    assert error.field == field
    assert f"{field} has token id {str(token)[:24]}" in error.message and f"ids are in [0, {WIDTH})" in error.message
    assert len(error.message) < 120


@pytest.mark.parametrize("field", LISTS)
def test_a_list_is_counted_before_it_is_looked_at(field: str) -> None:
    most = contract.MAX_LISTED_TOKEN_IDS
    sampling(**{field: (1,) * most})
    error = refusal(**{field: (-1,) * (most + 1)})
    assert (error.field, error.message) == (field, f"{field} has {most + 1} entries, the limit is {most}")


def test_an_empty_list_of_what_is_allowed_is_refused_and_one_of_what_is_banned_bans_nothing() -> None:
    error = refusal(allowed_token_ids=())
    assert (error.field, error.message) == ("allowed_token_ids", "allowed_token_ids is empty: nothing could be drawn")
    assert sampling(banned_token_ids=(), bad_words=(), bad_word_ids=()) == sampling()


def test_bad_words_of_both_kinds_are_joined_and_each_is_there_once() -> None:
    ids = tokenizer_pb2.SamplingIds(bad_words=[WORD(token_ids=[7]), WORD(token_ids=[1, 2]), WORD(token_ids=[3, WIDTH])])
    params = sampling(ids, bad_word_ids=((1, 2), (1, 1), (1, 2)))
    assert [list(word.token_ids) for word in params.bad_words] == [[1, 1], [1, 2], [7]], "what has no row cannot be drawn"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (((),), "bad_words has a sequence of 0 ids, the limits are 1 and 64"),
        (((1,) * 65,), "bad_words has a sequence of 65 ids, the limits are 1 and 64"),
        (((1, WIDTH),), f"bad_words has token id {WIDTH}, ids are in [0, {WIDTH})"),
        (tuple((a, b) for a in range(32) for b in range(33)), "bad_words has 1056 entries, the limit is 1024"),
    ],
)
def test_sequences_of_ids_are_bounded(words: tuple[tuple[int, ...], ...], what: str) -> None:
    error = refusal(bad_word_ids=words)
    assert (error.field, error.message) == ("bad_words", what)


def test_sequences_at_their_limits_are_taken() -> None:
    assert len(sampling(bad_word_ids=tuple((a, b) for a in range(32) for b in range(32))).bad_words) == 1024
    assert len(sampling(bad_word_ids=((WIDTH - 1,) * 64,)).bad_words[0].token_ids) == 64


def test_breakers_of_both_kinds_are_joined_where_there_is_a_penalty() -> None:
    ids = tokenizer_pb2.SamplingIds(dry_breaker_ids=[4, 9, WIDTH])
    assert list(sampling(ids, dry_multiplier=1.0, dry_breaker_ids=(5, 4)).dry_breaker_ids) == [4, 5, 9]
    assert sampling(ids, dry_breaker_ids=(5, 4), dry_base=2.0, dry_allowed_length=3) == sampling(), "without a multiplier nothing is lost"


def test_of_dry_what_the_contract_has_anyway_is_left_unset() -> None:
    assert sampling(dry_multiplier=0.5, dry_base=1.75, dry_allowed_length=2) == sampling(dry_multiplier=0.5)
    params = sampling(dry_multiplier=0.5, dry_base=2.5, dry_allowed_length=4)
    assert (params.dry_multiplier, params.dry_base, params.dry_allowed_length) == (0.5, 2.5, 4)


@pytest.mark.parametrize(("name", "low", "high"), [("dry_multiplier", 0, 100), ("dry_base", 1, 10), ("dry_allowed_length", 1, 64)])
@pytest.mark.parametrize("multiplier", [0.0, 1.0])
def test_ranges_of_dry_are_those_of_the_contract_whether_or_not_it_is_on(name: str, low: int, high: int, multiplier: float) -> None:
    for value in (low, high):
        sampling(**{"dry_multiplier": multiplier, name: value})
    for wrong in (low - 1, high + 1, math.nan, math.inf):
        error = refusal(**{"dry_multiplier": multiplier, name: wrong})
        assert (error.field, error.message) == (name, f"{name} is {wrong}, the range is [{low}, {high}]")


def left(min_tokens: int = 0, stop_token_ids: tuple[int, ...] = (), **wishes: Any) -> None:
    stopping = common_pb2.StoppingParams(max_tokens=9, min_tokens=min_tokens or None, stop_token_ids=stop_token_ids)
    check_something_is_left(sampling(**wishes), stopping, MODEL)


ALL = tuple(range(WIDTH))


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"allowed_token_ids": (1, 2), "banned_token_ids": (1, 2, 3)}, "banned_token_ids"),
        ({"allowed_token_ids": (1, 2), "banned_token_ids": (1,), "bad_word_ids": ((2,),)}, "banned_token_ids"),
        ({"allowed_token_ids": (1, 2), "bad_word_ids": ((1,), (2,))}, "bad_words"),
        ({"banned_token_ids": ALL}, "banned_token_ids"),
        ({"allowed_token_ids": (1, 2), "min_tokens": 1, "stop_token_ids": (2, 1)}, "min_tokens"),
        ({"allowed_token_ids": (1, 2), "banned_token_ids": (1,), "min_tokens": 1, "stop_token_ids": (2,)}, "min_tokens"),
        ({"min_tokens": 1, "stop_token_ids": ALL}, "min_tokens"),
    ],
)
def test_what_leaves_nothing_to_draw_is_refused_by_name(wishes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match="nothing could be drawn") as caught:
        left(**wishes)
    assert caught.value.field == field
    assert caught.value.message.startswith(field)


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {"banned_token_ids": ALL[1:]},
        {"allowed_token_ids": (1, 2), "banned_token_ids": (1, 3)},
        {"allowed_token_ids": (1, 2), "bad_word_ids": ((1,), (2, 2))},
        {"allowed_token_ids": (1, 2), "stop_token_ids": (1, 2)},
        {"allowed_token_ids": (1, 2), "min_tokens": 1, "stop_token_ids": (2,)},
        {"banned_token_ids": ALL[2:], "min_tokens": 1, "stop_token_ids": (1,)},
    ],
)
def test_what_leaves_one_token_is_taken(wishes: dict[str, Any]) -> None:
    left(**wishes)
