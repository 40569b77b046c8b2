"""A Redis client that answers from memory, fails or hangs as a test says; of the real one it has what the prompt cache uses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class FakeRedis:
    """Values and their milliseconds to live. Nothing expires."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.ttls_ms: dict[str, int] = {}
        # Raised by every command while it is set.
        self.error: Exception | None = None
        # Commands wait while it is cleared.
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.commands: list[str] = []
        self.closed = False

    async def ping(self) -> bool:
        """Whether it is there."""
        await self._command("ping")
        return True

    async def set(self, name: str, data: bytes, *, px: int) -> None:
        """Keeps a value."""
        await self._command("set")
        self.values[name] = data
        self.ttls_ms[name] = px

    async def delete(self, name: str) -> None:
        """Removes a value."""
        await self._command("delete")
        self.values.pop(name, None)

    async def aclose(self) -> None:
        """Closes it."""
        self.closed = True
        await self._command("close")

    def pipeline(self, *, transaction: bool) -> _Pipeline:
        """Commands sent together."""
        assert not transaction
        return _Pipeline(self)

    async def _command(self, name: str) -> None:
        self.commands.append(name)
        await self.flowing.wait()
        if self.error is not None:
            raise self.error


class _Pipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self._redis = redis
        self._replies: list[Callable[[], Any]] = []

    async def __aenter__(self) -> _Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._replies.clear()

    def getrange(self, name: str, start: int, end: int) -> None:
        """A part of a value, both ends included; empty if there is none."""
        self._replies.append(lambda: self._redis.values.get(name, b"")[start : end + 1])

    def pttl(self, name: str) -> None:
        """Milliseconds it has left; -1 = no end, -2 = it is not there."""
        self._replies.append(lambda: self._redis.ttls_ms.get(name, -1) if name in self._redis.values else -2)

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        """All replies."""
        assert not raise_on_error
        await self._redis._command("pipeline")
        return [reply() for reply in self._replies]
