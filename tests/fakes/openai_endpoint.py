"""An OpenAI-compatible endpoint on a free port of this machine, for embeddings unless told otherwise, as honest as a test wants it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


@dataclass(kw_only=True)
class Endpoint:
    """Where it is, what it was asked, and what it answers."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    answer: Answer

    async def handle(self, request: web.Request) -> web.StreamResponse:
        question = await request.json()
        self.asked.append(question)
        self.headers.append(dict(request.headers))
        return await self.answer(request, question)


def numbers_of(text: str, dimensions: int = 16) -> list[float]:
    """What the honest endpoint gives for a text: random, the same each time, not of unit length."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return [float(value) for value in np.random.default_rng(seed).normal(size=dimensions)]


def listing(rows: list[Any]) -> dict[str, Any]:
    """The body of an answer."""
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    return {"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


async def honest(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
    """Answers as it should."""
    return web.json_response(listing([numbers_of(text) for text in question["input"]]))


def judging(text: Any) -> Answer:
    """A chat model that gives this answer to everything."""

    async def answer(request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})

    return answer


@asynccontextmanager
async def endpoint(answer: Answer = honest, path: str = "/v1/embeddings") -> AsyncIterator[Endpoint]:
    """A server of one resource until the context ends."""
    found = Endpoint(answer=answer)
    app = web.Application()
    app.router.add_post(path, found.handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}{path}"
    try:
        yield found
    finally:
        await runner.cleanup()
