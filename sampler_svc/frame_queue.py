"""Messages of one stream that wait for their turn, so that all that wait can be answered at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FrameQueue(Generic[T]):
    """A bounded queue that is emptied whole.

    Args:
        limit: most messages that wait; the stream is not read on before they are taken.
        clock: seconds, never falling.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._messages: list[T] = []
        # Of the oldest that waits.
        self._since: float | None = None
        # Of the oldest that was taken, and is not answered before more is asked for.
        self._taken_since: float | None = None
        self._clock = clock
        self._closed = False
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    @property
    def oldest_s(self) -> float:
        """For how long the oldest message has waited for its answer."""
        oldest = self._since if self._taken_since is None else self._taken_since
        return 0.0 if oldest is None else self._clock() - oldest

    async def fill(self, stream: AsyncIterable[T]) -> None:
        """Reads a stream to its end, however it ends."""
        try:
            async for message in stream:
                self.put(message)
                if len(self._messages) >= self._limit:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self.close()

    def put(self, message: T) -> None:
        """Adds a message, whether there is room or not."""
        self._messages.append(message)
        self._since = self._clock() if self._since is None else self._since
        self._arrived.set()

    def close(self) -> None:
        """Nothing is waited for any more; what waits now can still be taken."""
        self._closed = True
        self._arrived.set()

    async def take_all(self) -> list[T]:
        """Waits for a message and takes all there are; none means that none will come."""
        self._taken_since = None
        await self._arrived.wait()
        messages, self._messages = self._messages, []
        self._taken_since, self._since = self._since, None
        if not self._closed:
            self._arrived.clear()
        self._room.set()
        return messages
