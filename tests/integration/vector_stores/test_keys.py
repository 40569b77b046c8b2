"""What the back ends in Redis promise beyond the contract: nothing that Redis or others do to the keys is misread."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from prompt_cache.vectors.keyspace import PREFIX
from prompt_cache.vectors.vector_store import Observation, StoreLimits, VectorStore
from tests.fakes.redis_servers import SERVERS, RedisServer
from tests.fakes.vector_backends import BACKENDS, NO_JITTER, OTHER_SCOPE, SCOPE, Backend, at, entry_key, found, keep, key_of, random_vectors


@pytest.fixture(params=[name for name, backend in BACKENDS.items() if backend.server is not None])
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


async def test_a_purge_takes_one_scope_and_leaves_no_key_of_it(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "kept", scope=OTHER_SCOPE)
    before = set(raw.keys("*"))
    for number in range(20):
        await keep(store, str(number))
    await store.purge(SCOPE)
    assert await found(store) == []
    assert set(raw.keys("*")) == before
    assert await found(store, scope=OTHER_SCOPE) == ["kept"]


async def test_all_keys_of_a_scope_lie_on_one_node_and_expire_after_the_entries(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a", ttl_s=1000)
    await store.hit(SCOPE, "a")
    await store.observe(SCOPE, "a", Observation(0.5, True))
    await keep(store, "b", ttl_s=10)
    for key in raw.keys("*"):
        assert f":{{{SCOPE}}}:".encode() in key
        assert raw.ttl(key) > 1000 or (b":e:" in key and raw.ttl(key) > 0)


async def test_expired_and_evicted_entries_never_crowd_out_those_that_live(store: VectorStore, raw: redis.Redis) -> None:
    for number in range(60):
        await keep(store, f"gone{number}", at(1))
    for name in ("near", "far"):
        await keep(store, name, at(0.9 if name == "near" else 0.5))
    assert len(await found(store, 2)) == 2
    for number in range(60):
        if number % 2:
            raw.pexpire(entry_key(raw, f"gone{number}"), -1)
        else:
            raw.delete(entry_key(raw, f"gone{number}"))
    assert await found(store, 2) == ["near", "far"]
    assert store.corrupt == 0


async def test_what_a_search_finds_gone_is_off_the_books(store: VectorStore, raw: redis.Redis) -> None:
    if store.name == "query-engine":
        pytest.skip("the index forgets what is gone by itself, so no search meets it; the books keep it until it would have expired")
    await keep(store, "a")
    await keep(store, "b")
    raw.delete(entry_key(raw, "a"))
    await found(store)
    await keep(store, "c")
    assert await store.count(SCOPE) == 2


async def test_an_entry_whose_time_has_come_is_swept_by_the_next_add(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a")
    raw.zadd(key_of(raw, "x"), {"a": 1})
    await keep(store, "b")
    assert await found(store) == ["b"]
    assert await store.count(SCOPE) == 1
    assert not raw.keys(f"{PREFIX}*:e:*:a")


async def test_an_entry_that_lost_its_expiry_is_served_and_gets_it_back(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a", ttl_s=1000)
    raw.persist(entry_key(raw, "a"))
    [hit] = await store.search(SCOPE, at(1), 1)
    assert 990 < hit.ttl_s <= 1000
    assert 990 < raw.ttl(entry_key(raw, "a")) <= 1000


async def test_an_observation_of_an_entry_that_is_gone_makes_none(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a")
    await store.remove(SCOPE, ["a"])
    await store.observe(SCOPE, "a", Observation(0.5, True))
    await store.hit(SCOPE, "a")
    assert not raw.keys("*:e:*:a")


async def test_what_cannot_fit_is_not_kept_and_evicts_no_more_than_it_may(make: Callable[..., VectorStore]) -> None:
    many = make(StoreLimits())
    for number in range(100):
        await keep(many, str(number))
    few = make(StoreLimits(max_entries=10))
    await keep(few, "new")
    assert await few.count(SCOPE) == 100 - 64
    await keep(few, "new")
    assert await few.count(SCOPE) == 10
    assert "new" in await found(few)


Spoil = Callable[[redis.Redis, bytes, bytes], object]

# Bytes, hits and tokens saved.
RECORD = struct.pack("<3I", 3, 1, 1)

# What becomes of an entry's key, or of its record.
GARBAGE: dict[str, Spoil] = {
    "a string": lambda raw, key, _: raw.delete(key) and raw.set(key, b"x"),
    "a list": lambda raw, key, _: raw.delete(key) and raw.rpush(key, b"x"),
    "no data": lambda raw, key, _: raw.hset(key, "other", b"") and raw.hdel(key, "d"),
    "1 MB of data": lambda raw, key, _: raw.hset(key, "d", bytes(1_000_000)),
    "no bytes": lambda raw, _, records: raw.hset(records, "bad", bytes(12)),
    "half a record": lambda raw, _, records: raw.hset(records, "bad", b"1234567"),
    "observations of another length": lambda raw, _, records: raw.hset(records, "bad", RECORD + bytes(6)),
    "too many observations": lambda raw, _, records: raw.hset(records, "bad", RECORD + bytes(5 * 65)),
    "a cosine of 1e38": lambda raw, _, records: raw.hset(records, "bad", RECORD + b"\xff\xff\x7f\x7f\x01"),
    "a verdict of 7": lambda raw, _, records: raw.hset(records, "bad", RECORD + b"\0\0\0\0\x07"),
}


@pytest.mark.parametrize("kind", list(GARBAGE))
async def test_garbage_in_place_of_an_entry_is_skipped_removed_and_counted(store: VectorStore, raw: redis.Redis, kind: str) -> None:
    await keep(store, "bad", at(1))
    await keep(store, "good", at(0.9))
    GARBAGE[kind](raw, entry_key(raw, "bad"), key_of(raw, "r"))
    seen = [hit.entry_id for hit in await store.search(SCOPE, at(1), 1) + await store.search(SCOPE, at(1), 1)]
    assert seen[-1] == "good" and "bad" not in seen
    # The query engine's index drops what is no hash (any more) by itself.
    assert store.corrupt == (0 if store.name == "query-engine" and kind in ("a string", "a list") else 1)
    await keep(store, "bad", at(1))
    assert await found(store) == ["bad", "good"]


@pytest.mark.parametrize("operation", ["hit", "observe"])
async def test_a_hit_or_an_observation_of_an_entry_with_half_a_record_removes_it(
    store: VectorStore, raw: redis.Redis, operation: str
) -> None:
    await keep(store, "bad")
    await keep(store, "good")
    GARBAGE["half a record"](raw, b"", key_of(raw, "r"))
    await (store.hit(SCOPE, "bad") if operation == "hit" else store.observe(SCOPE, "bad", Observation(0.5, True)))
    assert await found(store) == ["good"]
    assert store.corrupt == 1


@pytest.mark.parametrize("operation", ["hit", "observe"])
async def test_a_hit_or_an_observation_of_an_entry_that_is_gone_takes_it_off_the_books(
    store: VectorStore, raw: redis.Redis, operation: str
) -> None:
    await keep(store, "a")
    raw.delete(entry_key(raw, "a"))
    await (store.hit(SCOPE, "a") if operation == "hit" else store.observe(SCOPE, "a", Observation(0.5, True)))
    assert await store.count(SCOPE) == 0


@pytest.mark.parametrize("spoil", ["deleted", "a string", "a hash", "another member"])
@pytest.mark.parametrize("suffix", ["p", "x", "r", "v"])
async def test_a_scope_whose_records_are_lost_or_garbage_starts_anew(store: VectorStore, raw: redis.Redis, suffix: str, spoil: str) -> None:
    await keep(store, "a", at(0.5))
    if not raw.keys(f"{PREFIX}*}}:{suffix}"):
        pytest.skip("this back end has no such key")
    key = key_of(raw, suffix)
    if spoil == "another member":
        if raw.type(key) not in (b"zset", b"hash"):
            pytest.skip("only sorted sets and hashes have members")
        raw.zadd(key, {"other": 1}) if raw.type(key) == b"zset" else raw.hset(key, "other", 1)
    else:
        raw.delete(key)
        if spoil != "deleted":
            raw.set(key, b"x") if spoil == "a string" else raw.hset(key, "d", b"x")
    assert await found(store) == []
    assert await store.count(SCOPE) == 0
    assert store.corrupt == 1
    await keep(store, "b", at(0.9))
    await store.hit(SCOPE, "b")
    assert await found(store) == ["b"]


@pytest.mark.parametrize("counter", ["#bytes", "#clock", "#epoch", "#seq", "#floor"])
async def test_a_scope_whose_counters_are_no_numbers_starts_anew(store: VectorStore, raw: redis.Redis, counter: str) -> None:
    await keep(store, "a")
    raw.hset(key_of(raw, "r"), counter, b"many")
    await keep(store, "b")
    assert await found(store) == ["b"]
    assert store.corrupt == 1


async def test_others_entries_are_found_at_once(make: Callable[..., VectorStore]) -> None:
    one, other = make(), make()
    assert await found(one) == []
    await keep(other, "a", at(0.9))
    assert await found(one) == ["a"]
    await keep(other, "b", at(1))
    assert await found(one) == ["b", "a"]
    await other.remove(SCOPE, ["a"])
    await keep(other, "b", at(0.1))
    [hit] = await one.search(SCOPE, at(1), 5)
    assert hit.cosine == pytest.approx(0.1, abs=1e-5)
    await other.purge(SCOPE)
    assert await found(one) == []
    await keep(other, "c")
    assert await found(one) == ["c"]


async def test_a_redis_that_somebody_else_empties_is_empty_and_then_used_again(make: Callable[..., VectorStore], raw: redis.Redis) -> None:
    one, other = make(), make()
    for name in "abcde":
        await keep(one, name)
    assert len(await found(one)) == 5
    raw.flushall()
    for name in "uvwxyz":
        await keep(other, name, at(0.9))
    assert sorted(await found(one)) == list("uvwxyz")
    assert one.corrupt == other.corrupt == 0


@pytest.fixture
def own_server(backend: Backend, tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    assert backend.server is not None
    server = SERVERS[backend.server](tmp_path)
    yield server
    server.kill()


async def test_a_redis_that_was_restarted_is_empty_and_then_used_again(backend: Backend, own_server: RedisServer) -> None:
    async with Redis.from_url(own_server.url) as client:
        store = backend.make(client, NO_JITTER)
        await keep(store, "a")
        assert await found(store) == ["a"]
        await client.connection_pool.disconnect()
        own_server.kill()
        own_server.start()
        assert await found(store) == []
        await keep(store, "b")
        assert await found(store) == ["b"]
        assert store.corrupt == 0


async def test_scripts_that_redis_forgot_are_sent_again(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a")
    for operation in (lambda: keep(store, "b"), lambda: store.hit(SCOPE, "a"), lambda: found(store), lambda: store.remove(SCOPE, ["a"])):
        raw.script_flush()
        await operation()
    assert await found(store) == ["b"]


async def test_a_thousand_operations_at_once_leave_the_books_true(make: Callable[..., VectorStore]) -> None:
    stores = [make(StoreLimits(max_entries=30, policy="lfu")) for _ in range(2)]
    vectors = random_vectors(1000)
    limit = asyncio.Semaphore(50)

    async def operate(number: int) -> None:
        store, scope, name = stores[number % 2], SCOPE if number % 3 else OTHER_SCOPE, str(number * 7 % 41)
        async with limit:
            if number % 5 == 0:
                for hit in await store.search(scope, vectors[number], 3):
                    assert hit.data.startswith(scope.encode())
            elif number % 5 == 1:
                await store.hit(scope, name)
            elif number % 5 == 2:
                await store.remove(scope, [name])
            else:
                await keep(store, name, vectors[number], scope=scope, data=scope.encode() + name.encode())

    await asyncio.gather(*(operate(number) for number in range(1000)))
    for scope in (SCOPE, OTHER_SCOPE):
        ids = await found(stores[0], 100, scope=scope)
        assert sorted(ids) == sorted(await found(stores[1], 100, scope=scope))
        assert len(ids) == await stores[0].count(scope) <= 30
    assert stores[0].corrupt == stores[1].corrupt == 0
