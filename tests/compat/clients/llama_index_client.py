"""LlamaIndex's class for servers that are like OpenAI's."""

from __future__ import annotations

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.compat.clients.checks import MODEL, require, run


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


run("llama-index-llms-openai-like", {"chat": chat, "complete": complete})
