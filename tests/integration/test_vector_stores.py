"""What every back end of the vector store promises, on real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import numpy as np
import pytest
import redis
from redis.asyncio import Redis

from prompt_cache.vectors.keyspace import PREFIX
from prompt_cache.vectors.vector_store import EvictionPolicy, Observation, StoreLimits, VectorStore
from tests.fakes.redis_servers import RedisServer, plain, with_query_engine
from tests.fakes.vector_backends import BACKENDS, DIMENSIONS, OTHER_SCOPE, SCOPE, Backend, at, random_vectors

SERVERS: dict[str, Callable[..., RedisServer]] = {"plain": plain, "vectors": RedisServer, "query-engine": with_query_engine}
NO_JITTER = StoreLimits(ttl_jitter=0)
HOUR_S = 3600.0

Add = Callable[..., Awaitable[None]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RedisServer]]:
    """Servers by kind, each started when it is first asked for."""
    started: dict[str, RedisServer] = {}

    def server(kind: str) -> RedisServer:
        if kind not in started:
            started[kind] = SERVERS[kind](tmp_path_factory.mktemp(kind))
        return started[kind]

    yield server
    for each in started.values():
        each.kill()


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture
def server(backend: Backend, servers: Callable[[str], RedisServer]) -> RedisServer:
    return servers(backend.server)


@pytest.fixture
def raw(server: RedisServer) -> Iterator[redis.Redis]:
    """A plain client on an empty server, to look at and to spoil what the store keeps."""
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
        yield client


@pytest.fixture
async def client(server: RedisServer, raw: redis.Redis) -> AsyncIterator[Redis]:
    connected = Redis.from_url(server.url)
    yield connected
    await connected.aclose()


@pytest.fixture
def make(backend: Backend, client: Redis) -> Callable[..., VectorStore]:
    """Another store of the back end, as another process has it."""
    return lambda limits=NO_JITTER: backend.make(client, limits)


@pytest.fixture
def store(make: Callable[..., VectorStore]) -> VectorStore:
    return make()


async def keep(store: VectorStore, name: str, vector: object = None, *, scope: str = SCOPE, data: bytes = b"", **rest: float) -> None:
    """Adds an entry whose data say what it is."""
    options = {"ttl_s": HOUR_S, "saved_tokens": 1, **rest}
    await store.add(scope, name, at(1) if vector is None else vector, data or name.encode(), **options)  # type: ignore[arg-type]


async def found(store: VectorStore, k: int = 10, *, scope: str = SCOPE) -> list[str]:
    return [near.entry_id for near in await store.search(scope, at(1), k)]


def entry_key(raw: redis.Redis, name: str) -> bytes:
    [key] = raw.keys(f"{PREFIX}*:e:{name}")
    assert isinstance(key, bytes)
    return key


def key_of(raw: redis.Redis, suffix: str) -> bytes:
    [key] = raw.keys(f"{PREFIX}*}}:{suffix}")
    assert isinstance(key, bytes)
    return key


async def test_the_nearest_come_first_with_their_cosines(store: VectorStore) -> None:
    await keep(store, "far", at(0.3))
    await keep(store, "near", at(0.99))
    await keep(store, "opposite", at(-1))
    await keep(store, "middle", at(0.8, axis=2))
    hits = await store.search(SCOPE, at(1), 10)
    assert [hit.entry_id for hit in hits] == ["near", "middle", "far", "opposite"]
    assert [hit.cosine for hit in hits] == pytest.approx([0.99, 0.8, 0.3, -1], abs=1e-5)
    assert [hit.data for hit in hits] == [b"near", b"middle", b"far", b"opposite"]
    assert await found(store, 2) == ["near", "middle"]


async def test_cosines_are_those_of_numpy(store: VectorStore) -> None:
    vectors = random_vectors(50)
    for number, vector in enumerate(vectors):
        await keep(store, str(number), vector * (1 + number))
    query = random_vectors(1, seed=1)[0]
    exact = np.array(vectors) @ query
    hits = await store.search(SCOPE, query, 5)
    assert [int(hit.entry_id) for hit in hits] == list(np.argsort(-exact)[:5])
    assert [hit.cosine for hit in hits] == pytest.approx(sorted(exact)[::-1][:5], abs=1e-5)


async def test_an_empty_scope_has_no_neighbours(store: VectorStore) -> None:
    assert await store.search(SCOPE, at(1), 3) == []
    assert await store.count(SCOPE) == 0
    await store.hit(SCOPE, "none")
    await store.observe(SCOPE, "none", Observation(0.5, True))
    await store.remove(SCOPE, ["none"])
    await store.purge(SCOPE)
    assert await store.search(SCOPE, at(1), 3) == []
    assert store.corrupt == 0


async def test_an_entry_takes_the_place_of_the_one_of_its_name(store: VectorStore) -> None:
    await keep(store, "a", at(1), data=b"old")
    await store.observe(SCOPE, "a", Observation(0.5, True))
    await keep(store, "a", at(0.5), data=b"new")
    [hit] = await store.search(SCOPE, at(1), 5)
    assert (hit.data, hit.observations) == (b"new", ())
    assert hit.cosine == pytest.approx(0.5, abs=1e-5)
    assert await store.count(SCOPE) == 1


async def test_a_removed_entry_is_not_found(store: VectorStore) -> None:
    for name in "abc":
        await keep(store, name)
    await store.remove(SCOPE, ["a", "c", "none"])
    assert await found(store) == ["b"]
    assert await store.count(SCOPE) == 1


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


async def test_the_time_to_live_is_shortened_by_the_jitter_and_reported(make: Callable[..., VectorStore]) -> None:
    store = make(StoreLimits(ttl_jitter=0.5))
    for number in range(20):
        await keep(store, str(number), ttl_s=1000)
    left = [hit.ttl_s for hit in await store.search(SCOPE, at(1), 20)]
    assert 490 < min(left) < max(left) <= 1000
    assert max(left) - min(left) > 10


async def test_expired_and_evicted_entries_never_crowd_out_those_that_live(store: VectorStore, raw: redis.Redis) -> None:
    for number in range(60):
        await keep(store, f"gone{number}", at(1))
    for name in ("near", "far"):
        await keep(store, name, at(0.9 if name == "near" else 0.5))
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
    assert not raw.keys(f"{PREFIX}*:e:a")


async def test_an_entry_that_lost_its_expiry_is_served_and_gets_it_back(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a", ttl_s=1000)
    raw.persist(entry_key(raw, "a"))
    [hit] = await store.search(SCOPE, at(1), 1)
    assert 990 < hit.ttl_s <= 1000
    assert 990 < raw.ttl(entry_key(raw, "a")) <= 1000


async def test_observations_are_kept_in_order_and_the_oldest_go(store: VectorStore) -> None:
    await keep(store, "a")
    seen = [Observation(number / 128, number % 3 == 0) for number in range(70)]
    for observation in seen:
        await store.observe(SCOPE, "a", observation)
    [hit] = await store.search(SCOPE, at(1), 1)
    assert hit.observations == tuple(seen[-64:])
    assert hit.data == b"a"


async def test_an_observation_of_an_entry_that_is_gone_makes_none(store: VectorStore, raw: redis.Redis) -> None:
    await keep(store, "a")
    await store.remove(SCOPE, ["a"])
    await store.observe(SCOPE, "a", Observation(0.5, True))
    await store.hit(SCOPE, "a")
    assert not raw.keys("*:e:a")


POLICIES: list[tuple[EvictionPolicy, list[str]]] = [
    ("lru", ["a", "c", "d"]),
    ("fifo", ["b", "c", "d"]),
    ("lfu", ["a", "b", "d"]),
    ("cost", ["b", "c", "d"]),
]


@pytest.mark.parametrize(("policy", "left"), POLICIES)
async def test_one_entry_more_evicts_by_the_policy(make: Callable[..., VectorStore], policy: EvictionPolicy, left: list[str]) -> None:
    store = make(StoreLimits(max_entries=3, policy=policy))
    # Tokens saved per byte: a 1/100, b 10/100, c 50/10.
    await keep(store, "a", data=bytes(100), saved_tokens=1)
    await keep(store, "b", data=bytes(100), saved_tokens=10)
    await keep(store, "c", data=bytes(10), saved_tokens=50)
    # b and a are hit twice, c not; b longest ago but for c under lru, which asks for the last alone.
    for name in ("b", "b", "a", "a") if policy != "lru" else ("b", "c", "a"):
        await store.hit(SCOPE, name)
    await keep(store, "d", data=bytes(100), saved_tokens=5)
    assert sorted(await found(store)) == left
    assert await store.count(SCOPE) == 3


@pytest.mark.parametrize("policy", ["lfu", "cost"])
async def test_what_was_hit_often_long_ago_does_not_stay_for_ever(make: Callable[..., VectorStore], policy: EvictionPolicy) -> None:
    store = make(StoreLimits(max_entries=2, policy=policy))
    await keep(store, "old")
    for _ in range(5):
        await store.hit(SCOPE, "old")
    for number in range(8):
        await keep(store, str(number), data=b"new")
    assert "old" not in await found(store)


async def test_bytes_are_bounded_and_the_books_stay_true(make: Callable[..., VectorStore]) -> None:
    store = make(StoreLimits(max_bytes=1000))
    for number in range(50):
        await keep(store, str(number % 20), data=bytes(1 + 37 * number % 300))
        hits = await store.search(SCOPE, at(1), 50)
        assert sum(len(hit.data) for hit in hits) <= 1000
        assert len(hits) == await store.count(SCOPE)
    await keep(store, "all", data=bytes(1000))
    assert await found(store) == ["all"]
    assert await store.count(SCOPE) == 1


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


@pytest.mark.parametrize("field", ["data", "ttl_s", "saved_tokens", "entry id", "scope", "vector"])
async def test_what_no_store_keeps_is_refused_by_name(store: VectorStore, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        await store.add(
            "no hex" if field == "scope" else SCOPE,
            "a:b" if field == "entry id" else "a",
            at(1)[:-1] if field == "vector" else at(1),
            bytes(10**6) if field == "data" else b"a",
            ttl_s=0 if field == "ttl_s" else 1,
            saved_tokens=-1 if field == "saved_tokens" else 1,
        )


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
async def test_a_vector_without_a_direction_is_refused(store: VectorStore, value: float) -> None:
    vector = np.full(DIMENSIONS, value, np.float32)
    with pytest.raises(ValueError, match="zero or not finite"):
        await keep(store, "a", vector)
    with pytest.raises(ValueError, match="zero or not finite"):
        await store.search(SCOPE, vector, 1)


GARBAGE: dict[str, Callable[[redis.Redis, bytes], object]] = {
    "a string": lambda raw, key: raw.delete(key) and raw.set(key, b"x"),
    "a list": lambda raw, key: raw.delete(key) and raw.rpush(key, b"x"),
    "no data": lambda raw, key: raw.hdel(key, "d"),
    "1 MB of data": lambda raw, key: raw.hset(key, "d", bytes(1_000_000)),
    "observations of another length": lambda raw, key: raw.hset(key, "o", b"1234567"),
    "too many observations": lambda raw, key: raw.hset(key, "o", bytes(5 * 65)),
    "a cosine of 1e30": lambda raw, key: raw.hset(key, "o", b"\xff\xff\x7f\x7f\x01"),
    "a verdict of 7": lambda raw, key: raw.hset(key, "o", b"\0\0\0\0\x07"),
}


@pytest.mark.parametrize("kind", list(GARBAGE))
async def test_garbage_in_place_of_an_entry_is_skipped_removed_and_counted(store: VectorStore, raw: redis.Redis, kind: str) -> None:
    await keep(store, "bad", at(1))
    await keep(store, "good", at(0.9))
    key = entry_key(raw, "bad")
    GARBAGE[kind](raw, key)
    before = [hit.entry_id for hit in await store.search(SCOPE, at(1), 1) + await store.search(SCOPE, at(1), 1)]
    assert before[-1] == "good" and "bad" not in before
    # The query engine's index drops what is no hash (any more) by itself.
    assert store.corrupt == (0 if store.name == "query-engine" and kind in ("a string", "a list") else 1)
    await keep(store, "bad", at(1))
    assert await found(store) == ["bad", "good"]


@pytest.mark.parametrize("kind", ["a string", "a list", "no hits"])
async def test_a_hit_or_an_observation_of_garbage_removes_it(make: Callable[..., VectorStore], raw: redis.Redis, kind: str) -> None:
    store = make(StoreLimits(policy="cost"))
    await keep(store, "bad")
    await keep(store, "good")
    if kind == "no hits":
        raw.hset(entry_key(raw, "bad"), "h", b"many")
    else:
        GARBAGE[kind](raw, entry_key(raw, "bad"))
        await store.observe(SCOPE, "bad", Observation(0.5, True))
    await store.hit(SCOPE, "bad")
    assert await found(store) == ["good"]
    assert store.corrupt == 1


@pytest.mark.parametrize("spoil", ["deleted", "a string", "a hash", "another member"])
@pytest.mark.parametrize("suffix", ["p", "x", "n", "v"])
async def test_a_scope_whose_records_are_lost_or_garbage_starts_anew(store: VectorStore, raw: redis.Redis, suffix: str, spoil: str) -> None:
    await keep(store, "a", at(0.5))
    if not raw.keys(f"{PREFIX}*}}:{suffix}"):
        pytest.skip("this back end has no such key")
    key = key_of(raw, suffix)
    if spoil == "another member":
        if raw.type(key) != b"zset":
            pytest.skip("only sorted sets have members")
        raw.zadd(key, {"other": 1})
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
