"""The process's own store keeps its bounds, forgets whom its policy says, and no tenant takes more than its share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from prompt_cache.eviction import EvictionPolicy
from prompt_cache.keys import CacheKey
from prompt_cache.memory_store import ENTRY_OVERHEAD_BYTES, MemoryStore

MAX_ENTRIES = 4
MAX_BYTES = 3 * ENTRY_OVERHEAD_BYTES + 100
SHARE = 0.7

keys = st.builds(CacheKey, st.sampled_from(["a", "b"]), st.integers(0, 4).map(str))


@dataclass(eq=False)
class Known:
    """An entry as the model has it."""

    key: CacheKey
    data: bytes
    expires_at: float
    generation: int
    saved_tokens: int
    added_at: int
    used_at: int
    uses: int = 1
    # What policies with ageing count on top, of the whole store and of the namespace, as they were at the last use.
    ages: tuple[float, float] = (0.0, 0.0)

    @property
    def cost(self) -> int:
        return len(self.data) + ENTRY_OVERHEAD_BYTES

    def rank(self, policy: str, which: int) -> tuple[float, int]:
        worth = {"lfu": float(self.uses), "cost": self.uses * self.saved_tokens / self.cost}
        ranks = {
            "lru": float(self.used_at),
            "fifo": float(self.added_at),
            **{name: self.ages[which] + some for name, some in worth.items()},
        }
        return ranks[policy], self.used_at


class MemoryStoreAgainstAList(RuleBasedStateMachine):
    """The store against a list of entries that is searched for whatever is asked."""

    policy: ClassVar[EvictionPolicy]

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES, policy=self.policy, namespace_share=SHARE)
        self.model: list[Known] = []
        self.now = 0.0
        self.accesses = 0
        self.ages: dict[str, float] = {"": 0.0}

    def _of(self, namespace: str) -> list[Known]:
        return [entry for entry in self.model if namespace in ("", entry.key.namespace)]

    def _remove(self, key: CacheKey) -> None:
        self.model = [entry for entry in self.model if entry.key != key]
        self._forget_ages()

    def _forget_ages(self) -> None:
        self.ages = {name: age for name, age in self.ages.items() if not name or self._of(name)}

    def _shrink(self, namespace: str, max_bytes: int, max_entries: int) -> None:
        while sum(entry.cost for entry in self._of(namespace)) > max_bytes or len(self._of(namespace)) > max_entries:
            which = int(bool(namespace))
            first = min(self._of(namespace), key=lambda entry: entry.rank(self.policy, which))
            self.ages[namespace] = max(self.ages.get(namespace, 0.0), first.rank(self.policy, which)[0])
            self.model.remove(first)
        self._forget_ages()

    def _current_ages(self, namespace: str) -> tuple[float, float]:
        return (self.ages[""], self.ages.get(namespace, 0.0))

    @rule(key=keys, size=st.integers(0, 150), ttl_s=st.integers(0, 5), saved_tokens=st.integers(0, 9), generation=st.integers(0, 1))
    def put(self, key: CacheKey, size: int, ttl_s: int, saved_tokens: int, generation: int) -> None:
        self.store.put(key, bytes(size), now=self.now, ttl_s=ttl_s, saved_tokens=saved_tokens, generation=generation)
        self._remove(key)
        if ttl_s > 0 and size + ENTRY_OVERHEAD_BYTES <= int(MAX_BYTES * SHARE):
            self.accesses += 1
            entry = Known(key, bytes(size), self.now + ttl_s, generation, saved_tokens, self.accesses, self.accesses)
            entry.ages = self._current_ages(key.namespace)
            self.model.append(entry)
        self._shrink(key.namespace, int(MAX_BYTES * SHARE), int(MAX_ENTRIES * SHARE))
        self._shrink("", MAX_BYTES, MAX_ENTRIES)

    @rule(key=keys, generation=st.sampled_from([0, 0, 0, 1]))
    def get(self, key: CacheKey, generation: int) -> None:
        found = next((entry for entry in self.model if entry.key == key), None)
        if found is not None and (found.expires_at <= self.now or found.generation != generation):
            self._remove(key)
            found = None
        if found is not None:
            self.accesses += 1
            found.used_at = self.accesses
            found.uses += 1
            found.ages = self._current_ages(key.namespace)
        assert self.store.get(key, self.now, generation=generation) == (found.data if found else None)

    @rule(key=keys)
    def discard(self, key: CacheKey) -> None:
        self.store.discard(key)
        self._remove(key)

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def sizes_agree_and_keep_their_bounds(self) -> None:
        assert len(self.store) == len(self.model) <= MAX_ENTRIES
        assert self.store.num_bytes == sum(entry.cost for entry in self.model) <= MAX_BYTES


class LruAgainstAList(MemoryStoreAgainstAList):
    policy: ClassVar[EvictionPolicy] = "lru"


class LfuAgainstAList(MemoryStoreAgainstAList):
    policy: ClassVar[EvictionPolicy] = "lfu"


class FifoAgainstAList(MemoryStoreAgainstAList):
    policy: ClassVar[EvictionPolicy] = "fifo"


class CostAgainstAList(MemoryStoreAgainstAList):
    policy: ClassVar[EvictionPolicy] = "cost"


@pytest.mark.parametrize("machine", [LruAgainstAList, LfuAgainstAList, FifoAgainstAList, CostAgainstAList])
def test_a_store_does_what_a_list_does_that_is_searched_for_whatever_is_asked(machine: type[MemoryStoreAgainstAList]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=40))


POLICIES: tuple[EvictionPolicy, ...] = ("lru", "lfu", "fifo", "cost")


def key(number: int, namespace: str = "a") -> CacheKey:
    return CacheKey(namespace, str(number))


def filled(policy: EvictionPolicy, num_entries: int = 3) -> MemoryStore:
    """A store with as many entries as fit, 0 to 2."""
    store = MemoryStore(max_bytes=10**9, max_entries=num_entries, policy=policy)
    for number in range(num_entries):
        store.put(key(number), b"", now=0, ttl_s=1, saved_tokens=1)
    return store


def held(store: MemoryStore, count: int) -> set[int]:
    return {number for number in range(count) if store.get(key(number), 0) is not None}


@pytest.mark.parametrize(("policy", "gone"), [("lru", 1), ("lfu", 2), ("fifo", 0), ("cost", 2)])
def test_who_goes_when_the_store_is_full(policy: EvictionPolicy, gone: int) -> None:
    """0 is the oldest and the last used, 1 was used often but long ago, 2 is the newest and was never used."""
    store = filled(policy)
    for number in (1, 1, 2, 0, 0) if policy == "lru" else (1, 1, 0, 0):
        store.get(key(number), 0)
    store.put(key(3), b"", now=0, ttl_s=1, saved_tokens=5)
    assert held(store, 4) == {0, 1, 2, 3} - {gone}


def test_by_cost_a_long_answer_that_saves_little_goes_before_a_short_one_that_saves_much() -> None:
    store = MemoryStore(max_bytes=10**9, max_entries=2, policy="cost")
    store.put(key(0), bytes(100_000), now=0, ttl_s=1, saved_tokens=100)
    store.put(key(1), bytes(100), now=0, ttl_s=1, saved_tokens=100)
    store.put(key(2), bytes(100), now=0, ttl_s=1, saved_tokens=50)
    assert held(store, 3) == {1, 2}


@pytest.mark.parametrize("policy", ["lfu", "cost"])
def test_what_was_popular_once_goes_in_the_end(policy: EvictionPolicy) -> None:
    store = filled(policy)
    for _ in range(20):
        store.get(key(0), 0)
    for number in range(3, 100):
        store.put(key(number), b"", now=0, ttl_s=1, saved_tokens=1)
        store.get(key(number), 0)
    assert store.get(key(0), 0) is None


@given(st.sampled_from(POLICIES), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000)), max_size=60))
def test_a_tenant_that_floods_the_store_evicts_nothing_of_another_within_the_rest(
    policy: EvictionPolicy, flood: list[tuple[int, int]]
) -> None:
    store = MemoryStore(max_bytes=20 * ENTRY_OVERHEAD_BYTES, max_entries=20, policy=policy, namespace_share=0.75)
    for number in range(5):
        store.put(key(number, "quiet"), b"", now=0, ttl_s=1, saved_tokens=0)
    for number, size in flood:
        store.put(key(number, "loud"), bytes(size), now=0, ttl_s=1, saved_tokens=100)
        store.get(key(number, "loud"), 0)
    assert all(store.get(key(number, "quiet"), 0) == b"" for number in range(5))


def test_an_entry_of_another_generation_is_a_miss_and_is_removed() -> None:
    store = filled("lru")
    store.put(key(0), b"old", now=0, ttl_s=1, generation=4)
    assert store.get(key(0), 0, generation=4) == b"old"
    assert store.get(key(0), 0, generation=5) is None
    assert store.get(key(0), 0, generation=4) is None


def test_hits_do_not_make_the_store_grow() -> None:
    store = filled("lru")
    for _ in range(10_000):
        store.get(key(1), 0)
    assert len(store._all.order._heap) < 200


@given(st.binary(max_size=8))
def test_a_store_of_no_entries_keeps_nothing(data: bytes) -> None:
    store = MemoryStore(max_bytes=MAX_BYTES, max_entries=0)
    store.put(CacheKey("", ""), data, now=0, ttl_s=1)
    assert store.get(CacheKey("", ""), 0) is None
    assert store.num_bytes == 0


def test_a_value_too_large_for_the_store_takes_the_old_one_away_and_leaves_others_alone() -> None:
    store = MemoryStore(max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES)
    store.put(CacheKey("", "a"), b"old", now=0, ttl_s=1)
    store.put(CacheKey("", "b"), b"other", now=0, ttl_s=1)
    store.put(CacheKey("", "a"), bytes(MAX_BYTES), now=0, ttl_s=1)
    assert store.get(CacheKey("", "a"), 0) is None
    assert store.get(CacheKey("", "b"), 0) == b"other"


@pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan")])
def test_a_share_out_of_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"namespace_share is {share}, it must be above 0 and at most 1"):
        MemoryStore(max_bytes=1, max_entries=1, namespace_share=share)


def test_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="the eviction policy is 'random', known are lru, lfu, fifo, cost"):
        MemoryStore(max_bytes=1, max_entries=1, policy="random")  # type: ignore[arg-type]


@pytest.mark.parametrize("ttl_s", [0.0, -1.0])
def test_a_value_whose_time_is_over_is_not_kept_and_takes_the_old_one_away(ttl_s: float) -> None:
    store = MemoryStore(max_bytes=10_000, max_entries=4)
    key = CacheKey("aa", "1")
    store.put(key, b"old", now=0.0, ttl_s=9.0)
    store.put(key, b"new", now=5.0, ttl_s=ttl_s)
    assert len(store) == 0 and store.get(key, 0.0) is None
