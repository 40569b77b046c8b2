"""The real `openai` client against real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.local_pipeline import Pipeline, wait_until

QUESTION = [{"role": "user", "content": "What is Triserve?"}]


@pytest.fixture
def client(pipeline: Pipeline) -> Iterator[Any]:
    url, headers = f"{pipeline.url}/v1", {"Cache-Control": "no-store"}
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60, default_headers=headers) as client:
        yield client


@pytest.fixture
def model(client: Any) -> str:
    return str(client.models.list().data[0].id)


def test_a_chat_answers_in_whole_sentences(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    assert answer.choices[0].finish_reason == "stop"
    assert "Triserve" in answer.choices[0].message.content
    assert answer.choices[0].message.content.endswith(".")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_answer_in_pieces(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len(chunks) > 5
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_gives_the_same_answer_and_another_seed_another(client: Any, model: str) -> None:
    def draw(seed: int) -> str:
        answer = client.completions.create(model=model, prompt="The pipeline", temperature=1.5, seed=seed, max_tokens=24)
        return str(answer.choices[0].text)

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_n_choices_differ_and_are_reproducible(client: Any, model: str) -> None:
    def draw() -> list[str]:
        answer = client.completions.create(model=model, prompt="The pipeline", temperature=1.5, seed=11, n=3, max_tokens=16)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.text for choice in answer.choices]

    first = draw()
    assert len(set(first)) == 3
    assert draw() == first


def test_a_stop_string_ends_the_answer_before_it(client: Any, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 6]
    cut = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_are_of_the_drawn_tokens_and_the_likeliest_comes_first(client: Any, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    for token in content:
        assert token.logprob <= 0
        assert [top.logprob for top in token.top_logprobs] == sorted((top.logprob for top in token.top_logprobs), reverse=True)
        assert token.token == token.top_logprobs[0].token
    assert b"".join(bytes(token.bytes) for token in content).decode() == answer.choices[0].message.content


def test_log_probabilities_of_a_whole_answer_are_its_text_and_nothing_more(client: Any, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(messages=QUESTION, **asked).choices[0]
    assert whole.finish_reason == "stop"
    assert "".join(token.token for token in whole.logprobs.content) == whole.message.content
    text = whole.message.content
    cut = client.chat.completions.create(messages=QUESTION, stop=text[len(text) // 2 :][:5], **asked).choices[0]
    assert "".join(token.token for token in cut.logprobs.content) == cut.message.content
    streamed = [chunk.choices[0] for chunk in client.chat.completions.create(messages=QUESTION, stream=True, **asked)]
    assert [token for choice in streamed if choice.logprobs for token in choice.logprobs.content] == whole.logprobs.content


def test_a_special_token_s_name_is_a_stop_string(client: Any, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": QUESTION, "temperature": 0}
    usual = client.chat.completions.create(**asked).choices[0].message.content
    named = client.chat.completions.create(**asked, stop=["<|end|>"], max_tokens=200, extra_body={"ignore_eos": True}).choices[0]
    assert (named.message.content, named.finish_reason) == (usual, "stop")


def test_a_completion_takes_token_ids_and_returns_them(client: Any, model: str) -> None:
    answer = client.completions.create(
        model=model,
        prompt=[5, 6, 7],
        max_tokens=9,
        temperature=0,
        extra_body={"ignore_eos": True, "min_tokens": 9, "return_token_ids": True},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9
    assert len(answer.choices[0].token_ids) == 9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1),
        ("top_p", -0.5),
        ("n", 10_000),
        ("max_tokens", 0),
        ("stop", ["x"] * 99),
        ("frobnicate", 1),
        ("logit_bias", {"99999999": 1}),
    ],
)
def test_a_bad_field_is_refused_by_name(client: Any, model: str, field: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=QUESTION, extra_body={field: value})
    assert field in caught.value.message
    assert (caught.value.param or "").startswith(field)


def test_an_unknown_model_is_not_found(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-17", messages=QUESTION)
    assert caught.value.code == "model_not_found"


async def test_closing_a_stream_frees_the_request(pipeline: Pipeline, model: str) -> None:
    async with AsyncOpenAI(base_url=f"{pipeline.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model=model, prompt=[9] * 8, max_tokens=1500, stream=True, extra_body={"ignore_eos": True, "min_tokens": 1500}
        )
        async for _ in stream:
            break
        await stream.close()
    wait_until(pipeline.is_idle, "the closed stream's request is gone everywhere")
