"""Instructor: objects out of tools, out of JSON and out of a JSON schema, each validated by its own class."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from pydantic import BaseModel, ConfigDict

from tests.compat.clients.checks import MODEL, Trip, require, run

ASK = [{"role": "user", "content": "Plan a trip to Rome for three days."}]


class AnyObject(BaseModel):
    """What JSON mode holds an answer to: an object, of whatever fields."""

    model_config = ConfigDict(extra="allow")


def client(url: str, mode: Any) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120), mode=mode)


def planned(url: str, mode: Any) -> None:
    answer, raw = client(url, mode).chat.completions.create_with_completion(
        model=MODEL, messages=ASK, response_model=Trip, max_retries=0, temperature=0, max_tokens=99
    )
    require(isinstance(answer, Trip), "an object of the class")
    require(raw.usage.completion_tokens > 0, "the usage")


def json_mode(url: str) -> None:
    # JSON mode holds an answer to be an object, not to end soon: examples show a small model how.
    turns: list[Any] = []
    for city in ("Paris", "Berlin", "Oslo", "Madrid"):
        turns.append({"role": "user", "content": f"I go to {city}. Which city?"})
        turns.append({"role": "assistant", "content": f'{{"city": "{city}"}}'})
    turns.append({"role": "user", "content": "I go to Rome. Which city?"})
    answer = client(url, instructor.Mode.JSON).chat.completions.create(
        model=MODEL, messages=turns, response_model=AnyObject, max_retries=0, temperature=0, max_tokens=99
    )
    require(answer.model_dump(), "an object with fields")


def streamed(url: str) -> None:
    parts = list(
        client(url, instructor.Mode.TOOLS).chat.completions.create_partial(
            model=MODEL, messages=ASK, response_model=Trip, max_retries=0, temperature=0, max_tokens=99
        )
    )
    require(len(parts) > 1 and Trip.model_validate(parts[-1].model_dump()), "parts that grow to an object")


run(
    "instructor",
    {
        "TOOLS": lambda url: planned(url, instructor.Mode.TOOLS),
        "JSON": json_mode,
        "JSON_SCHEMA": lambda url: planned(url, instructor.Mode.JSON_SCHEMA),
        "TOOLS, streamed": streamed,
    },
)
