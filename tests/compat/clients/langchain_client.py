"""LangChain's chat model for OpenAI's API: text, tools, structured output."""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.compat.clients.checks import MODEL, Trip, require, run


def model(url: str, **fields: Any) -> ChatOpenAI:
    asked = {"temperature": 0, "max_tokens": 24, **fields}
    return ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", max_retries=0, **asked)


TURNS = [SystemMessage("Be brief."), HumanMessage("What is a page?"), AIMessage("16 tokens."), HumanMessage("And a step?")]


def invoke(url: str) -> None:
    answer = model(url).invoke(TURNS)
    require(answer.content and answer.usage_metadata["output_tokens"], "an answer and its usage")


def stream(url: str) -> None:
    chunks = list(model(url, stream_usage=True).stream(TURNS))
    require("".join(str(chunk.content) for chunk in chunks) == model(url).invoke(TURNS).content, "the same answer")
    require(any(chunk.usage_metadata for chunk in chunks), "the usage")


def batch(url: str) -> None:
    require(len(model(url, max_tokens=4).batch(["one", "two", "three"])) == 3, "three answers")


def log_probabilities(url: str) -> None:
    answer = model(url, logprobs=True, max_tokens=4).invoke("Hello")
    require(len(answer.response_metadata["logprobs"]["content"]) > 0, "log-probabilities")


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Weather of a city."""
    return f"sunny in {city}"


WEATHER: Any = tool(get_weather)


def tools(url: str) -> None:
    asked = [HumanMessage("How is the weather in Rome?")]
    answer = model(url, max_tokens=99).bind_tools([WEATHER], tool_choice="get_weather").invoke(asked)
    require(answer.tool_calls and answer.response_metadata["finish_reason"] in ("stop", "tool_calls"), "a call")
    results = [WEATHER.invoke(call) for call in answer.tool_calls]
    require(all(result.content.startswith("sunny in ") for result in results), "arguments that the tool takes")
    words = model(url, max_tokens=24).invoke([*asked, answer, *results])
    require(words.content and not words.tool_calls, "words behind the result")


def tool_stream(url: str) -> None:
    bound = model(url, max_tokens=99).bind_tools([WEATHER], tool_choice="required", parallel_tool_calls=False)
    whole, *chunks = list(bound.stream("How is the weather in Rome?"))
    for chunk in chunks:
        whole += chunk
    (call,) = whole.tool_calls
    require(WEATHER.invoke(call).content.startswith("sunny in "), "one call, put together of deltas")


def structured(url: str, method: Literal["json_schema", "function_calling"]) -> None:
    answer = model(url, max_tokens=99).with_structured_output(Trip, method=method).invoke("Plan a trip to Rome.")
    require(isinstance(answer, Trip), "an object of the class")


run(
    "langchain-openai",
    {
        "invoke": invoke,
        "stream": stream,
        "batch": batch,
        "log-probabilities": log_probabilities,
        "tools": tools,
        "streamed tool calls": tool_stream,
        "structured output, json_schema": lambda url: structured(url, "json_schema"),
        "structured output, function_calling": lambda url: structured(url, "function_calling"),
    },
)
