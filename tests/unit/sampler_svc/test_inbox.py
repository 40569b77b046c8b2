"""Messages wait in order, in bounds, and are taken all at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sampler_svc.inbox import Inbox


class Source:
    """A stream that counts what was read of it."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.read = 0
        self._count = count
        self._error = error

    async def __aiter__(self) -> AsyncIterator[int]:
        while self.read < self._count:
            self.read += 1
            yield self.read
        if self._error is not None:
            raise self._error


async def test_all_that_waits_is_taken_at_once_and_an_end_is_told() -> None:
    inbox: Inbox[int] = Inbox(10)
    await inbox.fill(Source(3))
    assert await inbox.take_all() == [1, 2, 3]
    assert await inbox.take_all() == []


async def test_no_more_is_read_than_may_wait() -> None:
    inbox: Inbox[int] = Inbox(4)
    source = Source(10)
    reader = asyncio.create_task(inbox.fill(source))
    taken: list[int] = []
    while more := await inbox.take_all():
        assert len(more) <= 4
        taken += more
        assert source.read <= len(taken) + 4
    assert taken == list(range(1, 11))
    await reader


async def test_a_broken_stream_ends_the_inbox_behind_what_came() -> None:
    inbox: Inbox[int] = Inbox(4)
    with pytest.raises(OSError, match="broken"):
        await inbox.fill(Source(2, OSError("broken")))
    assert await inbox.take_all() == [1, 2]
    assert await inbox.take_all() == []


async def test_closing_wakes_whoever_waits() -> None:
    inbox: Inbox[int] = Inbox(4)
    taker = asyncio.create_task(inbox.take_all())
    await asyncio.sleep(0)
    inbox.close()
    assert await taker == []
