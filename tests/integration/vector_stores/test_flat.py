"""The flat store's matrix is what Redis holds at every search, and stays within its bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import redis
from redis.asyncio import Redis

from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.flat import FlatStore
from prompt_cache.vectors.vector_store import StoreLimits
from tests.fakes.redis_servers import RedisServer
from tests.fakes.vector_backends import (
    BACKENDS,
    DIMENSIONS,
    NO_JITTER,
    OTHER_SCOPE,
    SCOPE,
    Backend,
    at,
    entry_key,
    found,
    keep,
    key_of,
    random_vectors,
)

ROW_BYTES = 4 * DIMENSIONS + 200


class Interrupted:
    """A client that lets something happen after each reply."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.replies = 0
        self.after: Callable[[int], Awaitable[None]] | None = None

    async def execute_command(self, *words: Any) -> Any:
        reply = await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        self.replies += 1
        if self.after is not None:
            await self.after(self.replies)
        return reply


@pytest.fixture
def backend() -> Backend:
    return BACKENDS["flat"]


@pytest.fixture
async def watched(client: Redis) -> AsyncIterator[Interrupted]:
    yield Interrupted(client)


def flat(client: Any, *, limits: StoreLimits = NO_JITTER, max_resident_bytes: int = 10**9) -> FlatStore:
    return FlatStore(client, dimensions=DIMENSIONS, limits=limits, max_resident_bytes=max_resident_bytes)


async def fill(store: FlatStore, count: int, *, scope: str = SCOPE, first: int = 0) -> None:
    vectors = random_vectors(count, seed=first)
    connections = asyncio.Semaphore(20)

    async def one(name: str, vector: Vector) -> None:
        async with connections:
            await keep(store, name, vector, scope=scope)

    await asyncio.gather(*(one(str(first + number), vector) for number, vector in enumerate(vectors)))


async def test_a_search_is_one_round_trip_and_two_after_a_change(client: Redis, watched: Interrupted) -> None:
    other, store = flat(client), flat(watched)
    await fill(other, 20)
    assert len(await found(store, 5)) == 5
    for number in range(3):
        watched.replies = 0
        assert len(await found(store, 5)) == 5
        assert watched.replies == 1
        await keep(other, str(number), at(1))
        watched.replies = 0
        assert len(await found(store, 5)) == 5
        assert watched.replies == 2


async def test_a_scope_of_many_pages_is_read_whole(client: Redis) -> None:
    one, other = flat(client), flat(client)
    await fill(one, 1300)
    assert sorted(await found(other, 2000)) == sorted(str(number) for number in range(1300))
    await fill(one, 600, first=1300)
    assert len(await found(other, 2000)) == 1900


async def test_who_missed_more_removals_than_are_remembered_reads_the_scope_anew(client: Redis) -> None:
    one, other = flat(client), flat(client)
    await fill(one, 5)
    await fill(one, 1200, first=100)
    assert len(await found(other, 2000)) == 1205
    for first in range(100, 1300, 100):
        await one.remove(SCOPE, [str(number) for number in range(first, first + 100)])
    assert sorted(await found(other, 2000)) == list("01234")
    assert other.resident_bytes < 20 * ROW_BYTES
    await keep(one, "new", at(1))
    assert (await found(other, 1)) == ["new"]


async def test_many_first_searches_at_once_read_the_scope_once(client: Redis, raw: redis.Redis) -> None:
    one, other = flat(client), flat(client)
    await fill(one, 400)
    before = raw.info("stats")["total_net_output_bytes"]
    results = await asyncio.gather(*(found(other, 1) for _ in range(90)))
    assert len({tuple(result) for result in results}) == 1
    # The matrix, and for each search what changed (nothing) and one entry; the matrix each time would be 3 MB.
    assert raw.info("stats")["total_net_output_bytes"] - before < 200_000


async def test_an_entry_that_changed_under_a_search_is_not_found_with_its_old_cosine(client: Redis, watched: Interrupted) -> None:
    other, store = flat(client), flat(watched)
    await keep(other, "a", at(1), data=b"old")
    assert await found(store) == ["a"]

    async def replace(replies: int) -> None:
        if replies == 1:
            await keep(other, "a", at(0.1), data=b"new")

    await keep(other, "b", at(0.5))
    watched.replies, watched.after = 0, replace
    assert await found(store) == ["b"]
    watched.after = None
    await other.remove(SCOPE, ["b"])
    [hit] = await store.search(SCOPE, at(1), 1)
    assert hit.data == b"new"
    assert hit.cosine == pytest.approx(0.1, abs=1e-5)


async def test_a_scope_that_is_made_anew_under_a_search_is_not_mixed_with_the_old(
    client: Redis, watched: Interrupted, raw: redis.Redis
) -> None:
    other, store = flat(client), flat(watched)
    await fill(other, 600)

    async def empty(replies: int) -> None:
        if replies == 1:
            raw.flushall()
            await fill(other, 30)

    # Between the first page and the second; further down, between what changed and what is fetched.
    watched.after = empty
    assert set(await found(store)) <= {str(number) for number in range(30)}
    assert sorted(await found(store, 50)) == sorted(str(number) for number in range(30))
    watched.replies = 0

    async def empty_again(replies: int) -> None:
        if replies == 1:
            raw.flushall()
            await keep(other, "0", at(0.5), data=b"another")

    watched.after = None
    await keep(other, "new", at(1))
    watched.after = empty_again
    assert await found(store) == []
    [hit] = await store.search(SCOPE, at(1), 5)
    assert hit.data == b"another"
    assert hit.cosine == pytest.approx(0.5, abs=1e-5)


async def test_numbers_that_went_back_and_caught_up_are_not_taken_for_the_old_ones(client: Redis, raw: redis.Redis) -> None:
    one, other = flat(client), flat(client)
    for name in "abc":
        await keep(one, name)
    assert len(await found(other)) == 3
    raw.flushall()
    for name in "defgh":
        await keep(one, name)
    assert sorted(await found(other)) == list("defgh")


@pytest.mark.parametrize(
    "vector",
    [b"", b"x" * (4 * DIMENSIONS - 1), b"x" * (4 * DIMENSIONS + 4), np.full(DIMENSIONS, np.nan, "<f4").tobytes(), bytes(4 * DIMENSIONS)],
)
async def test_a_vector_that_is_none_is_skipped_removed_and_counted(client: Redis, raw: redis.Redis, vector: bytes) -> None:
    one, other = flat(client), flat(client)
    await keep(one, "bad")
    await keep(one, "good", at(0.5))
    raw.hset(entry_key(raw, "bad"), "v", vector)
    assert await found(other) == ["good"]
    assert other.corrupt == 1
    assert await one.count(SCOPE) == 1


async def test_matrices_of_all_scopes_together_are_bounded(client: Redis) -> None:
    store = flat(client, max_resident_bytes=100 * ROW_BYTES)
    scopes = [f"{number:04x}" for number in range(12)]
    for scope in scopes:
        await fill(store, 20, scope=scope)
    for scope in scopes * 2:
        assert len(await found(store, 50, scope=scope)) == 20
        assert store.resident_bytes <= 100 * ROW_BYTES


async def test_of_a_scope_that_is_larger_than_the_bound_the_newest_are_found(client: Redis) -> None:
    store = flat(client, max_resident_bytes=50 * ROW_BYTES)
    await fill(store, 60)
    names = await found(store, 100)
    assert len(names) == 50
    await keep(store, "new", at(1))
    assert await found(store, 1) == ["new"]
    assert store.resident_bytes <= 50 * ROW_BYTES


async def test_empty_scopes_take_nothing(client: Redis) -> None:
    store = flat(client)
    await keep(store, "a")
    assert await found(store) == ["a"]
    await store.purge(SCOPE)
    for scope in (SCOPE, OTHER_SCOPE):
        assert await found(store, scope=scope) == []
    assert store.resident_bytes == 0


async def test_what_is_remembered_of_removals_is_bounded(client: Redis, raw: redis.Redis) -> None:
    store = flat(client, limits=StoreLimits(max_entries=1))
    await fill(store, 1200)
    assert raw.zcard(key_of(raw, "g")) == 1024


async def test_a_search_that_is_given_up_leaves_the_store_usable(client: Redis) -> None:
    one, other = flat(client), flat(client)
    await fill(one, 1100)
    for turns in range(40):
        search = asyncio.create_task(found(other, 5))
        for _ in range(turns):
            await asyncio.sleep(0)
        search.cancel()
        await asyncio.gather(search, return_exceptions=True)
    assert sorted(await found(other, 2000)) == sorted(str(number) for number in range(1100))


def test_the_servers_of_these_tests_know_no_vectors(servers: Callable[[str], RedisServer]) -> None:
    with redis.Redis.from_url(servers("plain").url) as client:
        assert client.execute_command("COMMAND INFO", "VSIM", "FT.SEARCH") in ([None, None], [[], []])
