"""What stands between the cache and Redis: here, that a request that is cancelled stays cancelled."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from prompt_cache.config import CacheConfig
from prompt_cache.guarded_redis import GuardedRedis
from tests.fakes.fake_redis import FakeRedis
from tests.fakes.fake_stages import Clock


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_that_the_client_loses_is_not_lost(fails: bool) -> None:
    """As `asyncio.wait_for` of Python 3.11 loses it when what it waited for is done at that moment."""
    config = CacheConfig(redis_url=None, secret=b"0123456789abcdef", lookup_timeout_s=60, socket_timeout_s=60)
    guarded = GuardedRedis(cast(Any, FakeRedis()), config, Clock())
    waiting = asyncio.Event()

    async def loses() -> str:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if fails:
                raise RedisConnectionError("gone") from None
        return "a reply"

    task = asyncio.create_task(guarded.attempt(loses()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
