"""LlamaIndex's class for servers that are like OpenAI's: text, tools, structured output."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.compat.clients.checks import MODEL, Trip, require, run


def model(url: str, *, is_chat: bool) -> OpenAILike:
    return OpenAILike(
        model=MODEL, api_base=f"{url}/v1", api_key="none", is_chat_model=is_chat, temperature=0, max_tokens=8, context_window=2048
    )


def chat(url: str) -> None:
    turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="What is a page?")]
    whole = model(url, is_chat=True).chat(turns).message.content
    streamed = [part.delta or "" for part in model(url, is_chat=True).stream_chat(turns)]
    require(whole and "".join(streamed) == whole, "the same answer, whole and streamed")


def complete(url: str) -> None:
    whole = model(url, is_chat=False).complete("The pipeline").text
    streamed = [part.delta or "" for part in model(url, is_chat=False).stream_complete("The pipeline")]
    require(whole and "".join(streamed) == whole, "the same answer, whole and streamed")


def calling(url: str) -> OpenAILike:
    fields = {"api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 99, "context_window": 2048}
    return OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True, **fields)


def book(city: str, days: int) -> str:
    """Books a trip."""
    return f"{days} days in {city}"


def tools(url: str) -> None:
    tool = FunctionTool.from_defaults(book, fn_schema=Trip)
    answer = calling(url).chat_with_tools([tool], user_msg="Book a trip to Rome.", tool_required=True, allow_parallel_tool_calls=False)
    calls = calling(url).get_tool_calls_from_response(answer)
    require([Trip.model_validate(call.tool_kwargs) for call in calls], "arguments of the schema")
    require(all(str(tool(**call.tool_kwargs)).endswith(call.tool_kwargs["city"]) for call in calls), "the tool's results")


def structured(url: str) -> None:
    answer = calling(url).as_structured_llm(Trip).chat([ChatMessage(role="user", content="Plan a trip to Rome.")])
    require(isinstance(answer.raw, Trip), "an object of the class")


run("llama-index-llms-openai-like", {"chat": chat, "complete": complete, "tools": tools, "structured output": structured})
