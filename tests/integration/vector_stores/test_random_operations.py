"""Whatever is done to two scopes, by two processes in turn: each holds what a dictionary would, and nothing of the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from prompt_cache.eviction import EvictionPolicy
from prompt_cache.vectors.local import LocalStore
from prompt_cache.vectors.vector_store import StoreLimits, VectorStore
from tests.fakes.redis_servers import RedisServer
from tests.fakes.vector_backends import BACKENDS, DIMENSIONS, NO_JITTER, OTHER_SCOPE, SCOPE, at

COSINES = [number / 10 for number in range(-9, 10)]

scopes = st.sampled_from([SCOPE, OTHER_SCOPE])
names = st.sampled_from("abcde")
operations = st.one_of(
    st.tuples(st.just("add"), scopes, names, st.sampled_from(COSINES)),
    st.tuples(st.just("add"), scopes, names, st.sampled_from(COSINES)),
    st.tuples(st.just("remove"), scopes, names, st.just(0.0)),
    st.tuples(st.just("hit"), scopes, names, st.just(0.0)),
    st.tuples(st.just("search"), scopes, names, st.just(0.0)),
    st.tuples(st.just("purge"), scopes, names, st.just(0.0)),
)


@pytest.mark.parametrize("name", list(BACKENDS))
def test_a_scope_holds_what_a_dictionary_would_and_nothing_of_the_other(servers: Callable[[str], RedisServer], name: str) -> None:
    backend = BACKENDS[name]
    url = servers(backend.server).url if backend.server is not None else None

    async def judge(steps: list[tuple[str, str, str, float]]) -> None:
        client = Redis.from_url(url) if url is not None else None
        if client is None:
            stores = [backend.make(client, NO_JITTER)] * 2  # type: ignore[arg-type]
        else:
            await client.flushall()
            stores = [backend.make(client, NO_JITTER) for _ in range(2)]
        await follow(stores, steps)
        if client is not None:
            await client.aclose()

    @settings(max_examples=60)
    @given(st.lists(operations, max_size=20))
    def property_holds(steps: list[tuple[str, str, str, float]]) -> None:
        asyncio.run(judge(steps))

    property_holds()


changes = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abcdefgh"), st.integers(1, 40), st.integers(0, 9)),
    st.tuples(st.just("add"), st.sampled_from("abcdefgh"), st.integers(1, 40), st.integers(0, 9)),
    st.tuples(st.just("hit"), st.sampled_from("abcdefgh"), st.just(0), st.just(0)),
    st.tuples(st.just("remove"), st.sampled_from("abcdefgh"), st.just(0), st.just(0)),
)


@pytest.mark.parametrize("policy", get_args(EvictionPolicy))
@pytest.mark.parametrize("name", [name for name, backend in BACKENDS.items() if backend.server is not None])
def test_redis_and_the_process_evict_the_same(servers: Callable[[str], RedisServer], name: str, policy: EvictionPolicy) -> None:
    backend = BACKENDS[name]
    assert backend.server is not None
    url = servers(backend.server).url
    limits = StoreLimits(max_entries=4, max_bytes=100, policy=policy, ttl_jitter=0)

    async def judge(steps: list[tuple[str, str, int, int]]) -> None:
        async with Redis.from_url(url) as client:
            await client.flushall()
            stores = [backend.make(client, limits), LocalStore(dimensions=DIMENSIONS, limits=limits)]
            for verb, entry_id, size, tokens in steps:
                for store in stores:
                    if verb == "add":
                        await store.add(SCOPE, entry_id, at(1), bytes(size), ttl_s=3600, saved_tokens=tokens)
                    elif verb == "hit":
                        await store.hit(SCOPE, entry_id)
                    else:
                        await store.remove(SCOPE, [entry_id])
            survivors = [{(hit.entry_id, hit.data) for hit in await store.search(SCOPE, at(1), 10)} for store in stores]
            assert survivors[0] == survivors[1]
            assert len(survivors[0]) <= 4 and sum(len(data) for _, data in survivors[0]) <= 100

    @settings(max_examples=25)
    @given(st.lists(changes, max_size=30))
    def property_holds(steps: list[tuple[str, str, int, int]]) -> None:
        asyncio.run(judge(steps))

    property_holds()


async def follow(stores: list[VectorStore], steps: list[tuple[str, str, str, float]]) -> None:
    model: dict[str, dict[str, float]] = {SCOPE: {}, OTHER_SCOPE: {}}
    for turn, (verb, scope, name, cosine) in enumerate(steps):
        store = stores[turn % 2]
        if verb == "add":
            await store.add(scope, name, at(cosine), f"{scope} {name}".encode(), ttl_s=3600, saved_tokens=1)
            model[scope][name] = cosine
        elif verb == "remove":
            await store.remove(scope, [name])
            model[scope].pop(name, None)
        elif verb == "hit":
            await store.hit(scope, name)
        elif verb == "purge":
            await store.purge(scope)
            model[scope].clear()
        else:
            await agrees(store, scope, model[scope])
    for store in stores:
        for scope, entries in model.items():
            await agrees(store, scope, entries)
            assert await store.count(scope) == len(entries)
        assert store.corrupt == 0


async def agrees(store: VectorStore, scope: str, entries: dict[str, float]) -> None:
    hits = await store.search(scope, at(1), 10)
    assert {hit.entry_id: hit.data for hit in hits} == {name: f"{scope} {name}".encode() for name in entries}
    assert [hit.cosine for hit in hits] == pytest.approx(sorted(entries.values(), reverse=True), abs=1e-5)
    assert [entries[hit.entry_id] for hit in hits] == pytest.approx([hit.cosine for hit in hits], abs=1e-5)
