"""Where a reader waits for any of the answers of its request."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from gateway.flow.generations.answer import Answer


class Ready(NamedTuple):
    """What a reader got."""

    answers: list[Answer]
    # Whether it is to return even if the answers have nothing for it: a writer may have taken it, or one that failed is tried again.
    woken: bool


class ReadyAnswers:
    """Answers that have something to take, each at most once. One reader.

    Args:
        idle_s: the reader is woken with nothing after this long, again and again; None = never.
    """

    def __init__(self, *, idle_s: float | None) -> None:
        self._waiting: list[Answer] = []
        self._event = asyncio.Event()
        self._woken = False
        self._idle_s = idle_s
        self._timer: asyncio.TimerHandle | None = None
        if idle_s is not None:
            self._tick()

    def put(self, answer: Answer) -> None:
        """Tells the reader of an answer."""
        if answer not in self._waiting:
            self._waiting.append(answer)
            self._event.set()

    def wake(self) -> None:
        """Wakes the reader, with nothing if there is nothing."""
        self._woken = True
        self._event.set()

    async def get(self) -> Ready:
        """Waits for at least one answer, for `wake` or for the idle time; returns the answers in the order in which they came."""
        await self._event.wait()
        self._event.clear()
        ready = Ready(self._waiting, self._woken)
        self._waiting = []
        self._woken = False
        return ready

    def close(self) -> None:
        """Stops the idle timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        assert self._idle_s is not None, "only a reader with an idle time is woken"
        if self._timer is not None:
            self.wake()
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._tick)
