"""Messages wait in order, in bounds, and are taken all at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sampler_svc.frame_queue import FrameQueue


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
    queue: FrameQueue[int] = FrameQueue(10)
    await queue.fill(Source(3))
    assert await queue.take_all() == [1, 2, 3]
    assert await queue.take_all() == []


async def test_no_more_is_read_than_may_wait() -> None:
    queue: FrameQueue[int] = FrameQueue(4)
    source = Source(10)
    reader = asyncio.create_task(queue.fill(source))
    taken: list[int] = []
    while more := await queue.take_all():
        assert len(more) <= 4
        taken += more
        assert source.read <= len(taken) + 4
    assert taken == list(range(1, 11))
    await reader


async def test_a_broken_stream_ends_the_queue_behind_what_came() -> None:
    queue: FrameQueue[int] = FrameQueue(4)
    with pytest.raises(OSError, match="broken"):
        await queue.fill(Source(2, OSError("broken")))
    assert await queue.take_all() == [1, 2]
    assert await queue.take_all() == []


async def test_closing_wakes_whoever_waits() -> None:
    queue: FrameQueue[int] = FrameQueue(4)
    taker = asyncio.create_task(queue.take_all())
    await asyncio.sleep(0)
    queue.close()
    assert await taker == []


async def test_the_oldest_message_waits_until_what_was_taken_is_answered() -> None:
    now = [0.0]
    queue: FrameQueue[int] = FrameQueue(10, clock=lambda: now[0])

    async def stream() -> AsyncIterator[int]:
        yield 1
        now[0] = 2.0
        yield 2
        await asyncio.Event().wait()

    filling = asyncio.create_task(queue.fill(stream()))
    assert queue.oldest_s == 0.0
    assert await queue.take_all() == [1, 2]
    now[0] = 5.0
    assert queue.oldest_s == 5.0, "they are being worked on"
    taking = asyncio.create_task(queue.take_all())
    await asyncio.sleep(0)
    assert queue.oldest_s == 0.0, "they are answered"
    for task in (filling, taking):
        task.cancel()
    await asyncio.gather(filling, taking, return_exceptions=True)
