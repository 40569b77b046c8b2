"""How many answers may be under way at once, and nothing new once the gateway leaves."""

from __future__ import annotations

import asyncio
from types import TracebackType

from gateway.flow.shares import Shares
from triserve.rpc.errors import Overloaded, ServiceError


class Admission:
    """Counts answers under way.

    Args:
        limit: most of them at once.
        shared: whether there is more than one tenant.
    """

    def __init__(self, limit: int, *, shared: bool = False) -> None:
        self._shares = Shares(limit, noun="answers", shared=shared)
        self._closed: ServiceError | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def set_shared(self, shared: bool) -> None:
        """See `Shares.set_shared`."""
        self._shares.set_shared(shared)

    @property
    def active(self) -> int:
        """Answers under way."""
        return self._shares.used

    @property
    def closed(self) -> bool:
        """Whether nothing new is admitted."""
        return self._closed is not None

    def require_open(self) -> None:
        """Does nothing, unless nothing new is admitted.

        Raises:
            ServiceError: what `close` was given.
        """
        if self._closed is not None:
            raise self._closed

    def enter(self, tenant: str) -> Ticket:
        """Admits a request with one answer, once its body is read; use the ticket as a context manager.

        Raises:
            Overloaded: as many as may be are under way, or as many as this tenant may have.
            ServiceError: what `close` was given.
        """
        return Ticket(self, tenant)

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

    def take(self, tenant: str, count: int) -> None:
        """Takes places.

        Raises:
            Overloaded: there are not so many, or as `Shares.take`.
            ServiceError: what `close` was given.
        """
        self.require_open()
        self._shares.take(tenant, count)
        self._idle.clear()

    def widen(self, tenant: str, more: int) -> None:
        """Takes further places for a request that has one. Several requests of many answers leave room for others of few.

        Raises:
            Overloaded: fewer would be free than it takes, and it is not alone; or as `take`.
            ServiceError: what `close` was given.
        """
        free = self._shares.limit - self.active
        if self.active > 1 and 2 * more > free:
            raise Overloaded(
                f"{self.active} answers are under way, the limit is {self._shares.limit}: no room for {more + 1} more; try again"
            )
        self.take(tenant, more)

    def give_back(self, tenant: str, count: int) -> None:
        """Gives places back."""
        self._shares.give_back(tenant, count)
        if self.active == 0:
            self._idle.set()


class Ticket:
    """The places of one request, from when its body is read until its answer is delivered. Made by `Admission.enter`."""

    def __init__(self, admission: Admission, tenant: str) -> None:
        admission.take(tenant, 1)
        self._admission = admission
        self._tenant = tenant
        self._places = 1

    def widen(self, num_answers: int) -> None:
        """Makes it a ticket for as many answers, now that their number is known.

        Raises:
            Overloaded: there are not so many places.
        """
        if num_answers > self._places:
            self._admission.widen(self._tenant, num_answers - self._places)
            self._places = num_answers

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._admission.give_back(self._tenant, self._places)
        self._places = 0
