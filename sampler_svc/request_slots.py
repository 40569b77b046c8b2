"""How many requests a sampler holds, over all its streams."""

from __future__ import annotations

import asyncio

from triserve.rpc.errors import Overloaded, Unavailable


class RequestSlots:
    """Counts requests under way and refuses those that are too many.

    Args:
        limit: most requests at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def open_requests(self) -> int:
        """Requests under way."""
        return self._open

    @property
    def closing(self) -> bool:
        """Whether no more requests are taken."""
        return self._closing

    def admit(self) -> None:
        """Takes one more request.

        Raises:
            Unavailable: the sampler is leaving.
            Overloaded: it holds as many as it may.
        """
        if self._closing:
            raise Unavailable("the sampler is leaving and takes no more requests")
        if self._open >= self._limit:
            raise Overloaded(f"the sampler has {self._open} requests, the limit is {self._limit}")
        self._open += 1
        self._idle.clear()

    def release(self, num_requests: int = 1) -> None:
        """Gives back what `admit` took."""
        self._open -= num_requests
        assert self._open >= 0, "more requests released than admitted"
        if self._open == 0:
            self._idle.set()

    def close(self) -> None:
        """Takes no request from now on."""
        self._closing = True

    async def wait_idle(self) -> None:
        """Returns when no request is under way."""
        await self._idle.wait()
