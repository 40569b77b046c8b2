"""Answers of a form, through all stages of a real pipeline, as unmodified clients ask for them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.e2e.local_pipeline import Pipeline


class Person(BaseModel):
    """What a client's own type may look like."""

    name: str
    age: int
    moods: list[Literal["glad", "sad"]]


SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "b", 1, None]}, "minItems": 1, "maxItems": 4},
    {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 6}]},
    {
        "type": "object",
        "properties": {
            "k": {"$ref": "#/$defs/leaf"},
            "m": {"type": "object", "properties": {"x": {"$ref": "#/$defs/leaf"}}, "required": ["x"]},
        },
        "required": ["k", "m"],
        "$defs": {"leaf": {"type": "string", "pattern": "^[a-f]{1,3}$"}},
    },
]


@pytest.fixture
async def client(pipeline: Pipeline) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{pipeline.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(client: AsyncOpenAI, text: str = "Tell me.", **fields: Any) -> Any:
    fields = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 150, "seed": 1, **fields}
    return client.chat.completions.create(**fields, extra_headers={"Cache-Control": "no-store"})


async def test_openais_own_helper_gets_the_clients_type(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "Who?"}], response_format=Person, max_tokens=400, seed=3, temperature=0.3
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Person)


async def test_every_answer_that_has_ended_is_what_its_schema_allows_however_it_is_drawn(client: AsyncOpenAI) -> None:
    jobs = [
        (schema, ask(client, f"Q{number}", seed=number, temperature=temperature, response_format=_format(schema)))
        for number, schema in enumerate(SCHEMAS * 3)
        for temperature in (0.0, 1.0)
    ]
    answers = await asyncio.gather(*(job for _, job in jobs))
    ended = 0
    for (schema, _), answer in zip(jobs, answers, strict=True):
        if answer.choices[0].finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    assert ended >= len(jobs) // 2


async def test_streams_choices_and_free_answers_beside_each_other_are_what_they_are_alone(client: AsyncOpenAI) -> None:
    async def streamed(**fields: Any) -> str:
        stream = await ask(client, stream=True, **fields)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    kinds: list[dict[str, Any]] = [
        {"extra_body": {"guided_regex": "[0-9]{3}-[a-c]{1,4}!"}},
        {"extra_body": {"structured_outputs": {"choice": ["yes", "no", "perhaps not"]}}},
        {"response_format": _format(SCHEMAS[0])},
        {"max_tokens": 20},
    ]
    alone = [await streamed(**kind) for kind in kinds]
    together = await asyncio.gather(*(streamed(**kind) for kind in kinds * 3))
    assert together == alone * 3
    assert re.fullmatch("[0-9]{3}-[a-c]{1,4}!", alone[0]) and alone[1] in ("yes", "no", "perhaps not")


async def test_several_choices_with_log_probabilities_are_each_of_the_form(client: AsyncOpenAI) -> None:
    answer = await ask(client, n=3, logprobs=True, top_logprobs=2, extra_body={"guided_regex": "(ab|ba){2}"})
    for choice in answer.choices:
        assert re.fullmatch("(ab|ba){2}", choice.message.content)
        assert "".join(one.token for one in choice.logprobs.content) == choice.message.content


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"extra_body": {"guided_regex": "("}}, "guided_regex", "unclosed group"),
        ({"extra_body": {"guided_grammar": "start: x"}}, "guided_grammar", "unknown name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"not": {}}}}}, "response_format", "not"),
        ({"extra_body": {"guided_regex": "a", "min_tokens": 3}}, "min_tokens", "guided_regex"),
    ],
    ids=["regex", "grammar", "schema", "min_tokens"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_held_is_refused_by_name_before_anything_is_sent(
    client: AsyncOpenAI, fields: dict[str, Any], param: str, says: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(client, stream=stream, **fields)
    assert caught.value.param == param
    assert says in caught.value.message


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "strict": strict,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{2,8}$"}, "unit": {"enum": ["C", "F"]}},
                "required": ["city", "unit"],
            },
        },
    }
    for name, strict in (("get_weather", True), ("get_time", False))
]


def called(choice: Any) -> list[str]:
    """The names of what an answer calls, with arguments that the tools take."""
    for call in choice.message.tool_calls or []:
        jsonschema.validate(json.loads(call.function.arguments), TOOLS[0]["function"]["parameters"])
    return [call.function.name for call in choice.message.tool_calls or []]


async def test_an_answer_that_must_call_calls_with_arguments_that_the_tool_takes(client: AsyncOpenAI) -> None:
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    asked = [
        ask(
            client,
            f"Weather in {number}?",
            tools=TOOLS,
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=number,
            temperature=temperature,
        )
        for number in range(3)
        for choice in ("required", named)
        for temperature in (0, 1)
    ]
    answers = [answer.choices[0] for answer in await asyncio.gather(*asked)]
    assert all(choice.message.content is None for choice in answers)
    assert {choice.finish_reason for choice in answers[0::4] + answers[1::4]} == {"tool_calls"}
    assert {choice.finish_reason for choice in answers[2::4] + answers[3::4]} == {"stop"}, "that it calls was the client's choice"
    assert all(len(called(choice)) == 1 for choice in answers)
    assert {name for choice in answers[2::4] + answers[3::4] for name in called(choice)} == {"get_time"}


async def test_beside_tools_an_answer_calls_or_is_of_its_form(client: AsyncOpenAI) -> None:
    more: Any = {"tools": TOOLS[:1], "response_format": _format(SCHEMAS[0]), "parallel_tool_calls": False}
    asked = [ask(client, f"Q{number}", seed=number, temperature=1, **more) for number in range(8)]
    for answer in await asyncio.gather(*asked):
        (choice,) = answer.choices
        assert bool(called(choice)) is not bool(choice.message.content)
        if choice.message.content:
            jsonschema.validate(json.loads(choice.message.content), SCHEMAS[0])


async def test_a_schema_of_a_tool_that_cannot_be_held_is_refused_where_it_is_strict(client: AsyncOpenAI) -> None:
    tool: Any = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems") as caught:
        await ask(client, tools=[{"type": "function", "function": {**tool, "strict": True}}])
    assert caught.value.param == "tools"
    answer = await ask(client, tools=[{"type": "function", "function": tool}], tool_choice="required", max_tokens=40)
    assert answer.choices[0].message.tool_calls[0].function.name == "f"


def _format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


LONG_NAMES: dict[str, Any] = {
    "type": "object",
    "properties": {f"a_property_with_quite_a_long_name_{number}": {"enum": [number, "no"]} for number in range(4)},
    "required": [f"a_property_with_quite_a_long_name_{number}" for number in range(4)],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_text_that_leaves_no_choice_is_the_same_taken_at_once_or_token_by_token(client: AsyncOpenAI, temperature: float) -> None:
    fields: dict[str, Any] = {"response_format": _format(LONG_NAMES), "temperature": temperature, "max_tokens": 300}
    at_once, one_by_one = await asyncio.gather(ask(client, **fields), ask(client, logprobs=True, **fields))
    assert at_once.choices[0].message.content == one_by_one.choices[0].message.content
    assert at_once.usage == one_by_one.usage
    jsonschema.validate(json.loads(at_once.choices[0].message.content), LONG_NAMES)


async def test_a_grammar_that_takes_too_long_is_refused_by_the_clients_name_for_it(client: AsyncOpenAI) -> None:
    letters = "abcdef"
    patterns = [f".*{one}.*{two}.*{three}" for one in letters for two in letters for three in letters]
    with pytest.raises(openai.BadRequestError) as caught:
        await ask(client, response_format=_format({"allOf": [{"pattern": pattern} for pattern in patterns]}))
    assert "too complex" in caught.value.message and "response_format" in caught.value.message
    assert (await ask(client, response_format=_format(SCHEMAS[0]))).choices[0].finish_reason == "stop"
