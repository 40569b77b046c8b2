"""What the store in the process promises beyond the contract: time and bounds."""

from __future__ import annotations

from prompt_cache.eviction import EvictionPolicy
from prompt_cache.vectors.local import LocalStore
from prompt_cache.vectors.vector_store import Observation, StoreLimits
from tests.fakes.vector_backends import DIMENSIONS, NO_JITTER, SCOPE, at, found, keep


class Clock:
    """Time that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def local(*, limits: StoreLimits = NO_JITTER, max_resident_bytes: int = 10**9, clock: Clock | None = None) -> LocalStore:
    return LocalStore(dimensions=DIMENSIONS, limits=limits, max_resident_bytes=max_resident_bytes, clock=clock or Clock())


async def test_entries_end_and_never_crowd_out_those_that_live() -> None:
    clock = Clock()
    store = local(clock=clock)
    for number in range(20):
        await keep(store, f"short{number}", at(1), ttl_s=10)
    await keep(store, "long", at(0.5), ttl_s=100)
    clock.now = 9.9
    assert len(await found(store, 30)) == 21
    clock.now = 10
    [hit] = await store.search(SCOPE, at(1), 2)
    assert (hit.entry_id, hit.ttl_s) == ("long", 90)
    await store.hit(SCOPE, "long")
    clock.now = 100
    await store.hit(SCOPE, "long")
    await store.observe(SCOPE, "long", Observation(0.5, True))
    assert await found(store) == []


async def test_all_scopes_together_are_bounded_and_the_one_used_longest_ago_goes() -> None:
    store = local(max_resident_bytes=100_000)
    for number in range(12):
        await keep(store, "a", data=bytes(20_000), scope=f"{number:02x}")
        assert store.resident_bytes <= 100_000
        assert await found(store, scope="00") == ["a"]
    assert [number for number in range(12) if await found(store, scope=f"{number:02x}")] == [0, 9, 10, 11]


async def test_one_scope_that_would_take_more_than_all_may_evicts_its_own() -> None:
    store = local(max_resident_bytes=50 * (4 * DIMENSIONS + 200))
    for number in range(200):
        await keep(store, str(number))
        assert len(await found(store, 500)) == await store.count(SCOPE) <= 50


async def test_the_order_of_eviction_takes_no_more_room_than_the_entries() -> None:
    policies: tuple[EvictionPolicy, ...] = ("lru", "lfu", "cost")
    for policy in policies:
        store = local(limits=StoreLimits(max_entries=3, policy=policy))
        for number in range(500):
            await keep(store, str(number % 5))
            await store.hit(SCOPE, str(number % 5))
        kept = store._scopes.use(SCOPE)
        assert kept is not None and len(kept._order) < 80
        assert await store.count(SCOPE) == 3
