"""The doors of one gateway give one answer, with the unmodified clients and real processes behind them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic
from openai import OpenAI

from tests.e2e.local_pipeline import Pipeline

QUESTION: Any = [{"role": "user", "content": "What is Triserve?"}]
FRESH = {"Cache-Control": "no-store"}


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[Any]:
    with OpenAI(base_url=f"{pipeline.url}/v1", api_key="none", max_retries=0, timeout=60, default_headers=FRESH) as client:
        yield client


@pytest.fixture
def other(pipeline: Pipeline) -> Iterator[Any]:
    with Anthropic(base_url=pipeline.url, api_key="none", max_retries=0, timeout=60, default_headers=FRESH) as client:
        yield client


@pytest.fixture
def chat(client: Any) -> Any:
    """Asks for a chat's answer, greedily."""
    model = client.models.list().data[0].id

    def ask(**fields: Any) -> Any:
        return client.chat.completions.create(**{"model": model, "messages": QUESTION, "temperature": 0, **fields}).choices[0]

    return ask


def test_the_same_question_has_the_same_answer_at_every_door(client: Any, other: Any, chat: Any) -> None:
    said = chat(max_tokens=24).message.content
    model = client.models.list().data[0].id
    response = client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=24)
    with client.responses.stream(model=model, input=QUESTION, temperature=0, max_output_tokens=24) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    message = other.messages.create(model=model, messages=QUESTION, max_tokens=24, extra_body={"temperature": 0})
    with other.messages.stream(model=model, messages=QUESTION, max_tokens=24, extra_body={"temperature": 0}) as stream:
        texts = "".join(stream.text_stream)
    assert {said, response.output_text, deltas, message.content[0].text, texts} == {said}
    count = other.messages.count_tokens(model=model, messages=QUESTION).input_tokens
    assert count == message.usage.input_tokens + message.usage.cache_read_input_tokens == response.usage.input_tokens


def test_a_stop_string_ends_the_answer_is_named_and_stays_where_that_is_wanted(other: Any, chat: Any) -> None:
    whole = chat().message.content
    stop = whole[5:12]
    before = whole[: whole.index(stop)]
    assert chat(stop=stop).message.content == before
    kept = chat(stop=stop, extra_body={"include_stop_str_in_output": True}, logprobs=True)
    assert kept.message.content == before + stop
    assert "".join(token.token for token in kept.logprobs.content) == before + stop
    for stream in (False, True):
        asked = {"model": "", "messages": QUESTION, "max_tokens": 99, "stop_sequences": [stop, "\x00"], "extra_body": {"temperature": 0}}
        if stream:
            with other.messages.stream(**asked) as events:
                message = events.get_final_message()
        else:
            message = other.messages.create(**asked)
        assert (message.stop_reason, message.stop_sequence, message.content[0].text) == ("stop_sequence", stop, before)


def test_an_answer_goes_on_with_its_own_beginning(other: Any, chat: Any) -> None:
    whole = chat().message.content
    # Where a word begins tokens do, too.
    begun = whole[: whole.index(" ", 10)]
    turns = [*QUESTION, {"role": "assistant", "content": begun}]
    assert begun + chat(messages=turns, extra_body={"continue_final_message": True}).message.content == whole
    message = other.messages.create(model="", messages=turns, max_tokens=99, extra_body={"temperature": 0})
    assert begun + message.content[0].text == whole


def test_special_tokens_are_shown_where_that_is_wanted(chat: Any) -> None:
    asked: dict[str, Any] = {"max_tokens": 40, "extra_body": {"ignore_eos": True, "skip_special_tokens": False}}
    hidden = chat(max_tokens=40, extra_body={"ignore_eos": True}).message.content
    shown = chat(**asked, logprobs=True)
    assert len(shown.message.content) > len(hidden)
    assert "<|" in shown.message.content
    assert "".join(token.token for token in shown.logprobs.content) == shown.message.content
