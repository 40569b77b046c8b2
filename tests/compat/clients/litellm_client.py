"""LiteLLM: it knows an overflow by the words of the message, and maps errors to exceptions of its own."""

from __future__ import annotations

import json
from typing import Any

import litellm

from tests.compat.clients.checks import MODEL, QUESTION, Trip, require, run

litellm.telemetry = False
litellm.suppress_debug_info = True


def ask(url: str, **fields: Any) -> Any:
    asked = {"model": f"openai/{MODEL}", "messages": QUESTION, "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    return litellm.completion(**{**asked, **fields})


def chat(url: str) -> None:
    require(ask(url, max_tokens=8, temperature=0).choices[0].message.content, "an answer")


def stream(url: str) -> None:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in ask(url, stream=True, temperature=0, max_tokens=24))
    require(text == ask(url, temperature=0, max_tokens=24).choices[0].message.content, "the same answer")


def overflow(url: str) -> None:
    for fields in ({"messages": [{"role": "user", "content": "word " * 20_000}]}, {"max_tokens": 1_000_000}):
        try:
            ask(url, **fields)
        except litellm.ContextWindowExceededError:
            continue
        raise AssertionError("ContextWindowExceededError")


def errors(url: str) -> None:
    for kind, fields in ((litellm.BadRequestError, {"temperature": -1}), (litellm.NotFoundError, {"model": "openai/gpt-17"})):
        try:
            ask(url, **fields)
        except kind:
            continue
        raise AssertionError(kind.__name__)


def structured(url: str) -> None:
    answer = ask(url, response_format=Trip, max_tokens=99, temperature=0)
    require(Trip.model_validate_json(answer.choices[0].message.content), "an object of the class")


def tools(url: str) -> None:
    function = {"name": "plan", "description": "Plans a trip.", "parameters": Trip.model_json_schema()}
    forced = {"tool_choice": "required", "parallel_tool_calls": False}
    fields = {"tools": [{"type": "function", "function": function}], "max_tokens": 99, "temperature": 0, **forced}
    calls = ask(url, **fields).choices[0].message.tool_calls
    require([Trip.model_validate(json.loads(call.function.arguments)) for call in calls], "arguments of the schema")
    chunks = list(ask(url, stream=True, **fields))
    built = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    require([call.function for call in built] == [call.function for call in calls], "the same calls in a stream")


run(
    "litellm",
    {"chat": chat, "stream": stream, "structured output": structured, "tools": tools, "overflow is known": overflow, "errors": errors},
)
