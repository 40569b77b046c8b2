"""The store in Redis by itself: what it asks, when it leaves Redis alone, and that no failure gets out. No socket, no time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from prompt_cache.config import CacheConfig
from prompt_cache.guarded_redis import GuardedRedis, connect
from prompt_cache.keys import CacheKey
from prompt_cache.redis_store import Found, RedisStore
from tests.fakes.fake_redis import FakeRedis
from tests.fakes.fake_stages import Clock, until

KEY = CacheKey("aa", "00" * 32)
SECRET = b"0123456789abcdef"
# Long: only a test that waits for the limit sets another.
PATIENT = {"lookup_timeout_s": 60, "socket_timeout_s": 60}


class Scene:
    """A store on a fake Redis, its writer not started."""

    def __init__(self, **bounds: Any) -> None:
        self.redis = FakeRedis()
        self.clock = Clock()
        self.config = CacheConfig(redis_url=None, secret=SECRET, **{**PATIENT, **bounds})
        self.guarded = GuardedRedis(cast(Any, self.redis), self.config, self.clock)
        self.store = RedisStore(self.guarded, self.config)


async def test_a_value_is_written_for_its_time_and_read_with_what_is_left_of_it() -> None:
    scene = Scene(ttl_s=1.5)
    await scene.guarded.start()
    scene.store.write(KEY, b"value")
    await scene.guarded.drain()
    assert scene.redis.ttls_ms == {KEY.redis_name: 1500}
    scene.redis.ttls_ms[KEY.redis_name] = 700
    assert await scene.store.read(KEY) == Found(b"value", 0.7)
    scene.store.delete(KEY)
    await scene.guarded.drain()
    assert await scene.store.read(KEY) is None
    assert (scene.guarded.written, scene.guarded.dropped, scene.guarded.errors) == (2, 0, 0)
    await scene.guarded.close()
    assert scene.redis.closed


async def test_a_value_without_an_end_has_none() -> None:
    scene = Scene()
    scene.redis.values[KEY.redis_name] = b"value"
    assert await scene.store.read(KEY) == Found(b"value", None)


async def test_a_value_that_ends_while_it_is_read_has_no_time_left() -> None:
    scene = Scene()
    scene.redis.values[KEY.redis_name] = b"value"
    scene.redis.ttls_ms[KEY.redis_name] = -2
    assert await scene.store.read(KEY) == Found(b"value", -0.002)


async def test_of_a_value_too_long_no_more_is_read_than_shows_it() -> None:
    scene = Scene(max_entry_bytes=4)
    scene.redis.values[KEY.redis_name] = b"x" * 1000
    found = await scene.store.read(KEY)
    assert found is not None
    assert found.data == b"x" * 5


async def test_a_key_that_holds_something_else_is_told_of() -> None:
    scene = Scene()
    scene.redis.values[KEY.redis_name] = cast(Any, _Raises(ResponseError("WRONGTYPE Operation against a key")))
    assert await scene.store.read(KEY) == Found(None, None)
    scene.redis.values[KEY.redis_name] = cast(Any, _Raises(ResponseError("LOADING")))
    assert await scene.store.read(KEY) is None
    assert scene.guarded.errors == 1


class _Raises:
    """A value whose part is an error reply."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, part: slice) -> Exception:
        return self._error


async def test_after_so_many_failures_in_a_row_redis_is_left_alone_until_a_probe_succeeds() -> None:
    scene = Scene(breaker_failures=2, breaker_open_s=3.0)
    scene.redis.error = RedisConnectionError("gone")
    for errors, is_open in ((1, False), (2, True)):
        assert await scene.store.read(KEY) is None
        assert (scene.guarded.errors, scene.guarded.breaker_open) == (errors, is_open)
    scene.redis.commands.clear()
    scene.clock.now += 2.999
    assert await scene.store.read(KEY) is None
    assert scene.redis.commands == []
    scene.redis.error = None
    scene.clock.now += 0.001
    assert await scene.store.read(KEY) is None, "no request waits for the probe"
    await scene.guarded.drain()
    assert (scene.redis.commands, scene.guarded.breaker_open) == (["ping"], False)
    scene.redis.values[KEY.redis_name] = b"value"
    assert await scene.store.read(KEY) == Found(b"value", None)


async def test_the_log_says_once_when_redis_is_left_alone_and_once_when_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="prompt_cache.guarded_redis")
    scene = Scene(breaker_failures=2, breaker_open_s=3.0)
    await scene.store.read(KEY)
    scene.redis.error = RedisConnectionError("gone")
    await scene.store.read(KEY)
    assert caplog.messages == []
    await scene.store.read(KEY)
    await scene.store.read(KEY)
    assert caplog.messages == ["Redis is left alone for 3 s after failures in a row, the last: ConnectionError: gone"]
    scene.redis.error = None
    scene.clock.now += 3
    await scene.store.read(KEY)
    await scene.guarded.drain()
    await scene.store.read(KEY)
    assert caplog.messages[1:] == ["Redis is in use again"]


async def test_a_success_between_them_forgets_failures() -> None:
    scene = Scene(breaker_failures=2)
    for error in (RedisConnectionError("gone"), None, RedisConnectionError("gone")):
        scene.redis.error = error
        await scene.store.read(KEY)
    assert (scene.guarded.errors, scene.guarded.breaker_open) == (2, False)


async def test_a_redis_that_hangs_costs_a_lookup_its_limit_and_no_more() -> None:
    scene = Scene(lookup_timeout_s=0.001)
    scene.redis.flowing.clear()
    assert await scene.store.read(KEY) is None
    assert scene.guarded.errors == 1


async def test_lookups_under_way_are_bounded_and_those_above_are_not_failures() -> None:
    scene = Scene(max_connections=2)
    for burst in (1, 2):
        scene.redis.flowing.clear()
        lookups = [asyncio.create_task(scene.store.read(KEY)) for _ in range(9)]
        await until(lambda: scene.store.busy == burst)  # noqa: B023 - waited for at once
        assert len(scene.redis.commands) == 8 * burst, "each place comes back once"
        scene.redis.flowing.set()
        await asyncio.gather(*lookups)
        assert (scene.store.busy, scene.guarded.errors) == (burst, 0)


async def test_writes_that_find_no_place_in_the_queue_are_dropped() -> None:
    scene = Scene(write_queue_len=2)
    await scene.guarded.start()
    scene.redis.flowing.clear()
    scene.store.write(KEY, b"0")
    await until(lambda: "set" in scene.redis.commands)
    for value in (b"1", b"2", b"3"):
        scene.store.write(KEY, value)
    assert (scene.guarded.queued, scene.guarded.dropped) == (2, 1)
    scene.redis.flowing.set()
    await scene.guarded.drain()
    assert (scene.guarded.written, scene.guarded.dropped, scene.redis.values[KEY.redis_name]) == (3, 1, b"2")
    await scene.guarded.close()


async def test_without_a_writer_and_while_redis_is_left_alone_writes_are_dropped() -> None:
    scene = Scene(breaker_failures=1)
    scene.store.write(KEY, b"value")
    assert (scene.guarded.dropped, scene.guarded.queued) == (1, 0)
    await scene.guarded.start()
    await scene.guarded.drain()
    scene.redis.error = RedisConnectionError("gone")
    await scene.store.read(KEY)
    scene.store.write(KEY, b"value")
    assert (scene.guarded.dropped, scene.guarded.written) == (2, 0)
    await scene.guarded.close()


async def test_a_write_that_fails_is_dropped_and_the_writer_goes_on() -> None:
    scene = Scene(breaker_failures=3)
    await scene.guarded.start()
    await scene.guarded.drain()
    scene.redis.error = RedisConnectionError("gone")
    scene.store.write(KEY, b"lost")
    await scene.guarded.drain()
    scene.redis.error = None
    scene.store.write(KEY, b"kept")
    await scene.guarded.drain()
    assert (scene.guarded.dropped, scene.guarded.written, scene.redis.values[KEY.redis_name]) == (1, 1, b"kept")
    await scene.guarded.close()


async def test_closing_gives_up_on_a_redis_that_hangs_or_fails() -> None:
    for hangs in (True, False):
        scene = Scene(lookup_timeout_s=0.001)
        await scene.guarded.start()
        await scene.guarded.drain()
        if hangs:
            scene.redis.flowing.clear()
        else:
            scene.redis.error = RedisConnectionError("gone")
        await scene.guarded.close()
        assert scene.redis.closed


async def test_closing_writes_what_is_queued_or_gives_it_up_in_time_and_leaves_no_task() -> None:
    for hangs in (False, True):
        scene = Scene(flush_timeout_s=0.001 if hangs else 60.0)
        await scene.guarded.start()
        await scene.guarded.drain()
        if hangs:
            scene.redis.flowing.clear()
            scene.store.write(KEY, b"first")
            await until(lambda: scene.redis.commands[-1:] == ["set"])  # noqa: B023 - waited for at once
        scene.store.write(KEY, b"value")
        closing = asyncio.create_task(scene.guarded.close())
        await until(lambda: scene.redis.closed)  # noqa: B023
        scene.redis.flowing.set()
        await closing
        assert scene.redis.values == ({} if hangs else {KEY.redis_name: b"value"})
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("prompt-cache")]
        scene.store.write(KEY, b"late")
        assert (scene.guarded.dropped, scene.guarded.queued) == (1, int(hangs))


async def test_a_store_that_was_never_started_closes() -> None:
    scene = Scene()
    await scene.guarded.close()
    assert scene.redis.closed


def test_a_client_waits_as_long_as_it_is_told_and_does_not_try_again_by_itself() -> None:
    config = CacheConfig(redis_url=None, secret=SECRET, socket_timeout_s=0.5, lookup_timeout_s=0.75, max_connections=3)
    pool = cast(Any, connect("redis://127.0.0.1:1/0", config).connection_pool)
    settings = pool.connection_kwargs
    assert (settings["socket_timeout"], settings["socket_connect_timeout"], pool.timeout, pool.max_connections) == (0.5, 0.5, 0.75, 3)
    assert settings["retry"].get_retries() == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379"])
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must begin with"):
        connect(url, CacheConfig(redis_url=url, secret=SECRET))
