"""What a body of /v1/embeddings asks, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.flow.limits import Limits
from gateway.http.openai.embedding_body import EmbeddingBody
from gateway.http.openai.parsing import parse_body
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import compute_pb2


def parsed(**fields: Any) -> EmbeddingBody:
    return parse_body(EmbeddingBody, {"input": "Hello", **fields}, Limits())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Hello", ["Hello"]),
        (["Hello", "you"], ["Hello", "you"]),
        ([1, 2], [(1, 2)]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
    ],
)
def test_an_input_is_a_text_texts_token_ids_or_lists_of_them(given: Any, expected: list[Any]) -> None:
    prompts = parsed(input=given, add_special_tokens=False).prompts()
    assert [one if isinstance(one, tuple) else one.text.text for one in prompts] == expected
    assert all(isinstance(one, tuple) or one.text.add_special_tokens is False for one in prompts)


def test_nothing_is_drawn_and_the_pooling_says_which_states_are_wanted() -> None:
    assert (parsed().wishes().max_tokens, parsed().wishes().least_tokens) == (0, 0)
    assert parsed().hidden_states == parsed(pooling="mean").hidden_states == compute_pb2.HIDDEN_STATES_MEAN
    assert parsed(pooling="last").hidden_states == compute_pb2.HIDDEN_STATES_LAST


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"pooling": "cls"}, "pooling"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
        ({"stream": True}, "stream"),
        ({"input": {"text": "a"}}, "input"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_what_is_not_done_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parsed(**fields)
    assert caught.value.field == named


def test_dimensions_are_those_of_the_model() -> None:
    parsed().check_size(4)
    parsed(dimensions=4).check_size(4)
    for body, size, named in ((parsed(dimensions=3), 4, "dimensions"), (parsed(), 0, "model")):
        with pytest.raises(InvalidRequest) as caught:
            body.check_size(size)
        assert caught.value.field == named
