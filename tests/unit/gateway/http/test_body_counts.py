"""Lists and objects are counted before an item of them is looked at: the limit is allowed, one more is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.flow.limits import Limits
from gateway.http.body_counts import check_counts
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.parsing import parse_body
from gateway.http.openai.tokenize_bodies import DetokenizeBody, TokenizeBody
from triserve.rpc.errors import InvalidRequest

LIMITS = Limits()


class Untouchable:
    """An item that nothing may look at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("an item was looked at before they were counted")


def many(count: int, *, named: bool) -> Any:
    return {str(number): Untouchable() for number in range(count)} if named else [Untouchable()] * count


@pytest.mark.parametrize(
    ("field", "limit", "named"),
    [
        ("messages", LIMITS.max_messages, False),
        ("prompt", LIMITS.max_prompts, False),
        ("stop", LIMITS.max_stop_strings, False),
        ("stop_token_ids", LIMITS.max_stop_token_ids, False),
        ("allowed_token_ids", 16384, False),
        ("banned_token_ids", 16384, False),
        ("bad_words", 512, False),
        ("dry_sequence_breakers", 16, False),
        ("logit_bias", LIMITS.max_logit_bias, True),
        ("chat_template_kwargs", LIMITS.max_template_arguments, True),
    ],
)
def test_the_limit_is_allowed_and_one_more_is_refused_unseen(field: str, limit: int, named: bool) -> None:
    if field == "prompt":
        check_counts({field: ["a"] * limit}, LIMITS)
        with pytest.raises(InvalidRequest, match=f"^{field} has {limit + 1} prompts, the limit is {limit}$"):
            check_counts({field: ["a"] * (limit + 1)}, LIMITS)
        return
    check_counts({field: many(limit, named=named)}, LIMITS)
    with pytest.raises(InvalidRequest, match=f"^{field} has {limit + 1} [a-z]+, the limit is {limit}$") as caught:
        check_counts({field: many(limit + 1, named=named)}, LIMITS)
    assert caught.value.field == field


def test_the_ids_of_one_prompt_are_not_prompts() -> None:
    check_counts({"prompt": [1] * 100_000}, LIMITS)


@pytest.mark.parametrize("kind", [ChatBody, CompletionBody, TokenizeBody, DetokenizeBody])
def test_the_first_of_many_unknown_fields_is_refused_before_any_is_looked_into(kind: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^Unknown field: 0$"):
        parse_body(kind, many(30_000, named=True), LIMITS)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (ChatBody, {"messages": [1] * 9}),
        (ChatBody, {"messages": [{}] * 9}),
        (ChatBody, {"messages": [{"role": "user", "content": "a"}], "stop": [1] * 9}),
        (ChatBody, {"messages": [{"role": "user", "content": "a"}], "stop_token_ids": ["a"] * 9}),
        (TokenizeBody, {"messages": [1] * 9}),
        (DetokenizeBody, {"tokens": ["a"] * 9}),
    ],
)
def test_a_list_of_wrong_items_makes_the_errors_of_one(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(wrong)
    assert caught.value.error_count() <= 2


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "a", **{f"{number}": 1 for number in range(9)}}]},
        {"messages": [{"role": "user", "content": "a"}], "stream_options": {f"{number}": 1 for number in range(9)}},
    ],
)
def test_unknown_fields_further_in_are_refused_as_early(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^Unknown field: (messages\[0\]|stream_options)\.0$"):
        parse_body(ChatBody, body, LIMITS)
