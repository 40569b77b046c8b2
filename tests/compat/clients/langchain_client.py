"""LangChain's chat model for OpenAI's API."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from tests.compat.clients.checks import MODEL, require, run


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


run("langchain-openai", {"invoke": invoke, "stream": stream, "batch": batch, "log-probabilities": log_probabilities})
