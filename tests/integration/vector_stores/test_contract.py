"""What every back end of the vector store promises, on real servers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from prompt_cache.eviction import EvictionPolicy
from prompt_cache.vectors.vector_store import Observation, StoreLimits, VectorStore
from tests.fakes.vector_backends import DIMENSIONS, OTHER_SCOPE, SCOPE, at, found, keep, random_vectors


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


async def test_nearer_entries_of_another_scope_crowd_out_none(store: VectorStore) -> None:
    for number in range(100):
        await keep(store, str(number), at(1), scope=OTHER_SCOPE)
    await keep(store, "mine", at(0.1))
    await keep(store, "0", at(0.2))
    assert await found(store, 2) == ["0", "mine"]
    assert [hit.data for hit in await store.search(SCOPE, at(1), 100)] == [b"0", b"mine"]


async def test_who_asks_for_none_gets_none(store: VectorStore) -> None:
    await keep(store, "a")
    assert await store.search(SCOPE, at(1), 0) == []
    assert await store.search(SCOPE, at(1), 1) != []
    assert await store.search(SCOPE, at(1), 0) == []


async def test_a_removed_entry_is_not_found(store: VectorStore) -> None:
    for name in "abc":
        await keep(store, name)
    await store.remove(SCOPE, ["a", "c", "none"])
    assert await found(store) == ["b"]
    assert await store.count(SCOPE) == 1


async def test_the_time_to_live_is_shortened_by_the_jitter_and_reported(make: Callable[..., VectorStore]) -> None:
    store = make(StoreLimits(ttl_jitter=0.5))
    for number in range(20):
        await keep(store, str(number), ttl_s=1000)
    left = [hit.ttl_s for hit in await store.search(SCOPE, at(1), 20)]
    assert 490 < min(left) < max(left) <= 1000
    assert max(left) - min(left) > 10


async def test_observations_are_kept_in_order_and_the_oldest_go(store: VectorStore) -> None:
    await keep(store, "a")
    seen = [Observation(number / 128, number % 3 == 0) for number in range(70)]
    for observation in seen:
        await store.observe(SCOPE, "a", observation)
    [hit] = await store.search(SCOPE, at(1), 1)
    assert hit.observations == tuple(seen[-64:])
    assert hit.data == b"a"


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


@pytest.mark.parametrize("cosine", [1.01, -1.01, np.nan, np.inf])
async def test_an_observation_that_could_not_be_read_again_is_refused(store: VectorStore, cosine: float) -> None:
    await keep(store, "a")
    with pytest.raises(ValueError, match="cosine is "):
        await store.observe(SCOPE, "a", Observation(cosine, True))
    await store.observe(SCOPE, "a", Observation(1.0000001, True))
    [hit] = await store.search(SCOPE, at(1), 1)
    assert len(hit.observations) == 1


@pytest.mark.parametrize("ttl_s", [0, -1.0, np.nan, np.inf, 1e12])
async def test_a_time_to_live_that_redis_cannot_count_is_refused(store: VectorStore, ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s is "):
        await keep(store, "a", ttl_s=ttl_s)


async def test_an_entry_larger_than_its_scope_may_be_is_refused_and_evicts_nothing(make: Callable[..., VectorStore]) -> None:
    store = make(StoreLimits(max_bytes=10))
    await keep(store, "a")
    with pytest.raises(ValueError, match="data has 11 bytes, must have 1 to 10"):
        await keep(store, "b", data=bytes(11))
    assert await found(store) == ["a"]


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
