"""Calls about the prefix cache: each is one question to the engine and one answer. Runs on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from compute_svc.wire.request import Request, Tokens
from compute_svc.wire.step_output import Pinned, PrefixStats, StepOutput
from triserve.rpc.errors import ServiceError


class PrefixPort(Protocol):
    """What is asked of the engine; each returns at once."""

    def submit(self, request: Request) -> None:
        """Puts a request in the queue."""

    def release(self, number: int) -> None:
        """Ends a request."""

    def unpin(self, number: int, tenant: str, tokens: Tokens) -> None:
        """Lets a pinned prefix go."""

    def prefix_stats(self, number: int) -> None:
        """Asks what the prefix cache holds."""


class PrefixCalls:
    """Calls under way, each by a number that no request has.

    Args:
        engine: Of the replica.
        next_number: A number that is used nowhere else.
        clock: Seconds, monotonic.
    """

    def __init__(self, engine: PrefixPort, next_number: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._next_number = next_number
        self._clock = clock
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._refusal: ServiceError | None = None

    async def pin(self, tenant: str, tokens: Tokens, timeout_s: float | None) -> Pinned:
        """Computes whole pages of a prefix, unless they are cached, and keeps them. Who cancels this takes the wish back.

        Args:
            tenant: Whose it is.
            tokens: [n * page_size], n at least 1.
            timeout_s: How long it may take; None = as long as it takes.

        Raises:
            ServiceError: The engine cannot, or not in time.
        """
        now = self._clock()
        number = self._next_number()
        deadline = None if timeout_s is None else now + timeout_s
        request = Request(number, tenant, tokens, np.empty(0, np.int64), 0, now, deadline=deadline, pins=True)
        try:
            pinned: Pinned = await self._ask(number, lambda: self._engine.submit(request))
        except asyncio.CancelledError:
            self._engine.release(number)
            raise
        return pinned

    async def unpin(self, tenant: str, tokens: Tokens) -> bool:
        """Lets a pinned prefix go; returns whether it was pinned."""
        number = self._next_number()
        was_pinned: bool = await self._ask(number, lambda: self._engine.unpin(number, tenant, tokens))
        return was_pinned

    async def stats(self) -> PrefixStats:
        """What the prefix cache holds."""
        number = self._next_number()
        stats: PrefixStats = await self._ask(number, lambda: self._engine.prefix_stats(number))
        return stats

    def refuse(self, error: ServiceError) -> None:
        """Ends all calls, now and from now on, with this error."""
        self._refusal = error
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)

    def on_output(self, output: StepOutput) -> None:
        """A step has ended: some prefixes may be pinned, others may have failed."""
        for pinned in output.pinned:
            self.on_answer(pinned.number, pinned)
        for released in output.released:
            if released.error is not None:
                self.on_refused(released.number, released.error)

    def on_answer(self, number: int, answer: Any) -> None:
        """The engine has answered; nobody may be waiting any more."""
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def on_refused(self, number: int, error: ServiceError) -> None:
        """The engine has refused or failed a request, one of these or another."""
        future = self._answers.get(number)
        if future is not None and not future.done():
            future.set_exception(error)

    async def _ask(self, number: int, ask: Callable[[], None]) -> Any:
        if self._refusal is not None:
            raise self._refusal
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            ask()
            return await future
        finally:
            del self._answers[number]
