"""Rules of sampling against real processes: what must not be said is not, what alone may be is, and repetitions end."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.e2e.local_pipeline import Pipeline

QUESTION = [{"role": "user", "content": "What is Triserve?"}]


def post(pipeline: Pipeline, path: str, body: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{pipeline.url}{path}", json.dumps(body).encode(), headers), timeout=60
    ) as response:
        return json.load(response)


def chat(pipeline: Pipeline, **fields: Any) -> tuple[str, list[int]]:
    answer = post(
        pipeline, "/v1/chat/completions", {"messages": QUESTION, "temperature": 0, "max_tokens": 40, "return_token_ids": True, **fields}
    )
    (choice,) = answer["choices"]
    return choice["message"]["content"], choice["token_ids"]


def complete(pipeline: Pipeline, prompt: str, **fields: Any) -> list[int]:
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": True, "return_token_ids": True, **fields}
    ids: list[int] = post(pipeline, "/v1/completions", body)["choices"][0]["token_ids"]
    return ids


def test_a_bad_word_is_not_said_wherever_it_would_stand(pipeline: Pipeline) -> None:
    said, _ = chat(pipeline)
    words = said.replace(".", " ").replace(",", " ").split()
    assert len(set(words)) > 3
    for word in (words[0], words[-1]):
        without, _ = chat(pipeline, bad_words=[word])
        assert word not in without.split()
        assert without != said
    none_of_them, _ = chat(pipeline, bad_words=words, temperature=1, seed=3)
    assert not set(words) & set(none_of_them.split())


def test_nothing_but_what_is_allowed_is_said_and_nothing_that_is_banned(pipeline: Pipeline) -> None:
    _, ids = chat(pipeline)
    allowed = sorted({*ids, 40, 41, 42})
    for fields in ({"temperature": 0}, {"temperature": 5, "seed": 1}):
        assert set(complete(pipeline, "What", allowed_token_ids=allowed, **fields)) <= set(allowed)
        banned = allowed[1:]
        assert complete(pipeline, "What", allowed_token_ids=allowed, banned_token_ids=banned, **fields) == [allowed[0]] * 40
        assert not set(complete(pipeline, "What", banned_token_ids=allowed, **fields)) & set(allowed)


def test_dry_ends_a_repetition_and_breakers_let_it_go_on(pipeline: Pipeline) -> None:
    # Two tokens by turns, as the bias has it: the longest repetition there is.
    first, second = 40, 41
    bias = {"allowed_token_ids": [first, second], "logit_bias": {str(first): 1, str(second): 1}}
    plain = complete(pipeline, "What", **bias)
    dry = complete(pipeline, "What", **bias, dry_multiplier=100, dry_base=10, dry_sequence_breakers=[])
    assert _longest_repetition(dry) < _longest_repetition(plain)
    tokens = post(pipeline, "/detokenize", {"tokens": [first]})["prompt"], post(pipeline, "/detokenize", {"tokens": [second]})["prompt"]
    broken = complete(pipeline, "What", **bias, dry_multiplier=100, dry_base=10, dry_sequence_breakers=list(tokens))
    assert broken == plain


def _longest_repetition(ids: list[int]) -> int:
    return max(
        (length for length in range(1, len(ids)) for start in range(len(ids) - length) if _recurs(ids, start, length)),
        default=0,
    )


def _recurs(ids: list[int], start: int, length: int) -> bool:
    return any(ids[other : other + length] == ids[start : start + length] for other in range(start + 1, len(ids) - length + 1))


def test_filters_narrow_what_is_drawn_down_to_the_likeliest(pipeline: Pipeline) -> None:
    hot = {"temperature": 100, "seed": 5}
    greedy, wide = complete(pipeline, "What"), complete(pipeline, "What", **hot)
    assert wide != greedy
    assert complete(pipeline, "What", **hot, top_n_sigma=1e-6) == greedy
    others = complete(pipeline, "What", **hot, top_k=2, xtc_probability=1, xtc_threshold=0.01)
    assert others[0] != greedy[0], "of two that are likely enough, XTC leaves the second"
    assert complete(pipeline, "What", **hot, typical_p=0.01) != wide


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"bad_words": ["\x01" * 65]}, "bad_words"), ({"allowed_token_ids": []}, "allowed_token_ids"), ({"typical_p": 0}, "typical_p")],
)
def test_nonsense_is_refused_by_name(pipeline: Pipeline, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat(pipeline, **fields)
    with caught.value as response:
        assert (response.status, json.load(response)["error"]["param"]) == (400, field)
