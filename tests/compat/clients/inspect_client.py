"""Inspect: an evaluation whose model calls a tool, through its provider for servers that are like OpenAI's."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from inspect_ai.model import ChatMessageUser, GenerateConfig, Model, ResponseSchema, execute_tools, get_model
from inspect_ai.tool import Tool, ToolFunction, tool
from inspect_ai.util import json_schema

from tests.compat.clients.checks import MODEL, Trip, require, run

ASK = "How is the weather in Rome?"


def model(url: str, **fields: Any) -> Model:
    config = GenerateConfig(temperature=0, max_tokens=99, max_retries=0, **fields)
    return get_model(f"openai-api/triserve/{MODEL}", base_url=f"{url}/v1", api_key="none", config=config, memoize=False)


def get_weather() -> Tool:
    async def execute(city: Literal["Paris", "Rome"]) -> str:
        """Weather of a city.

        Args:
            city: which.
        """
        return f"sunny in {city}"

    return execute


WEATHER: Any = tool(get_weather)


async def called(url: str, choice: Any) -> None:
    turns: list[Any] = [ChatMessageUser(content=ASK)]
    answer = await model(url).generate(turns, tools=[WEATHER()], tool_choice=choice)
    require(answer.message.tool_calls and not any(call.parse_error for call in answer.message.tool_calls), "calls that are read")
    results, _ = await execute_tools([*turns, answer.message], [WEATHER()])
    require(all(result.error is None and result.text.startswith("sunny in ") for result in results), "arguments that the tool takes")
    words = await model(url).generate([*turns, answer.message, *results], tools=[WEATHER()], tool_choice="none")
    require(words.completion and not words.message.tool_calls, "words behind the result")


async def text(url: str) -> None:
    answer = await model(url).generate(ASK)
    require(answer.completion and answer.usage and answer.usage.output_tokens, "an answer and its usage")


async def structured(url: str) -> None:
    schema = ResponseSchema(name="trip", json_schema=json_schema(Trip))
    answer = await model(url, response_schema=schema).generate("Plan a trip to Rome.")
    require(Trip.model_validate_json(answer.completion), "an object of the class")


run(
    "inspect-ai",
    {
        "text": lambda url: asyncio.run(text(url)),
        "tools, any": lambda url: asyncio.run(called(url, "any")),
        "tools, by name": lambda url: asyncio.run(called(url, ToolFunction("get_weather"))),
        "structured output": lambda url: asyncio.run(structured(url)),
    },
)
