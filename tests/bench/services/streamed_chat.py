"""A chat as its client sees it: streamed, timed from the request to the first text."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

import aiohttp


class StreamedChat(NamedTuple):
    """What came of a request.

    Attributes:
        text: Of the answer.
        ttft_s: To the first text; to the end where there was none.
        usage: As the server reports it.
        cache: What the prompt cache did.
    """

    text: str
    ttft_s: float
    usage: dict[str, Any]
    cache: str


async def streamed_chat(session: aiohttp.ClientSession, messages: list[dict[str, str]], **fields: Any) -> StreamedChat:
    """Asks and reads to the end.

    Raises:
        AssertionError: it was not answered.
    """
    body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **fields}
    began, first, text = time.perf_counter(), None, ""
    usage: dict[str, Any] = {}
    async with session.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            piece = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
            if piece and first is None:
                first = time.perf_counter()
            text += piece
            usage = event.get("usage") or usage
        return StreamedChat(text, (first or time.perf_counter()) - began, usage, response.headers["X-Triserve-Cache"])
