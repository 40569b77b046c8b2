"""How many answers may be under way at once, and nothing new once the gateway leaves."""

from __future__ import annotations

import asyncio
from types import TracebackType

from triserve.rpc.errors import Overloaded, ServiceError


class Admission:
    """Counts answers under way.

    Args:
        limit: most of them at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._closed: ServiceError | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self.active = 0

    @property
    def closed(self) -> bool:
        """Whether nothing new is admitted."""
        return self._closed is not None

    def enter(self) -> Ticket:
        """Admits a request with one answer; use the ticket as a context manager.

        Raises:
            Overloaded: as many as may be are under way.
            ServiceError: what `close` was given.
        """
        return Ticket(self)

    def close(self, error: ServiceError) -> None:
        """Refuses all that comes from now on with the error. What is under way goes on."""
        self._closed = error

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; whether that came to be in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def take(self, count: int) -> None:
        """Takes places.

        Raises:
            Overloaded: there are not so many.
            ServiceError: what `close` was given.
        """
        if self._closed is not None:
            raise self._closed
        if self.active + count > self._limit:
            raise Overloaded(f"{self.active} answers are under way, the limit is {self._limit}; try again")
        self.active += count
        self._idle.clear()

    def give_back(self, count: int) -> None:
        """Gives places back."""
        self.active -= count
        assert self.active >= 0, "a place is given back once"
        if self.active == 0:
            self._idle.set()


class Ticket:
    """The places of one request, from before its body is read until its answer is delivered. Made by `Admission.enter`."""

    def __init__(self, admission: Admission) -> None:
        admission.take(1)
        self._admission = admission
        self._places = 1

    def widen(self, num_answers: int) -> None:
        """Makes it a ticket for as many answers, now that their number is known.

        Raises:
            Overloaded: there are not so many places.
        """
        if num_answers > self._places:
            self._admission.take(num_answers - self._places)
            self._places = num_answers

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._admission.give_back(self._places)
        self._places = 0
