"""Pydantic AI: agents with output types and tools."""

from __future__ import annotations

from typing import Any, Literal

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.compat.clients.checks import MODEL, Trip, require, run

ASK = "Plan a trip to Rome for three days."


def agent(url: str, **fields: Any) -> Any:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    return Agent(model, model_settings={"temperature": 0, "max_tokens": 99, "parallel_tool_calls": False}, retries=0, **fields)


def text(url: str) -> None:
    result = agent(url, instructions="Be brief.").run_sync("What is a page?", model_settings={"max_tokens": 24})
    require(result.output and result.usage.output_tokens > 0, "an answer and its usage")


def output(url: str, kind: Any) -> None:
    result = agent(url, output_type=kind).run_sync(ASK)
    require(isinstance(result.output, Trip), "an object of the class")


def tools(url: str) -> None:
    given: list[str] = []
    planner = agent(url)

    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Weather of a city."""
        given.append(city)
        return "sunny"

    planner.tool_plain(get_weather)
    # The first step must call; the next, with the result in its prompt, answers in words.
    result = planner.run_sync(
        "How is the weather in Rome?", model_settings=lambda context: {"tool_choice": "required" if context.run_step == 1 else "none"}
    )
    require(given and result.output, "a call of the tool with an argument that it takes, and words behind its result")


run(
    "pydantic-ai-slim",
    {
        "text": text,
        "output type, as a tool": lambda url: output(url, ToolOutput(Trip)),
        "output type, native": lambda url: output(url, NativeOutput(Trip)),
        "tools": tools,
    },
)
