"""The process's own store keeps its bounds and forgets the least recently used."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prompt_cache.keys import CacheKey
from prompt_cache.memory_store import ENTRY_OVERHEAD_BYTES, MemoryStore

MAX_ENTRIES = 4
MAX_BYTES = 3 * ENTRY_OVERHEAD_BYTES + 100

keys = st.integers(0, 6).map(lambda number: CacheKey("00", str(number)))


class MemoryStoreAgainstAList(RuleBasedStateMachine):
    """The store against a list of (key, data, expiry), least recently used first."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(max_bytes=MAX_BYTES, max_entries=MAX_ENTRIES)
        self.model: list[tuple[CacheKey, bytes, float]] = []
        self.now = 0.0

    def _cost(self) -> int:
        return sum(len(data) + ENTRY_OVERHEAD_BYTES for _, data, _ in self.model)

    @rule(key=keys, size=st.integers(0, MAX_BYTES), ttl_s=st.integers(0, 5))
    def put(self, key: CacheKey, size: int, ttl_s: int) -> None:
        data = bytes(size)
        self.store.put(key, data, now=self.now, ttl_s=ttl_s)
        self.model = [entry for entry in self.model if entry[0] != key]
        if ttl_s > 0 and size + ENTRY_OVERHEAD_BYTES <= MAX_BYTES:
            self.model.append((key, data, self.now + ttl_s))
        while self._cost() > MAX_BYTES or len(self.model) > MAX_ENTRIES:
            self.model.pop(0)

    @rule(key=keys)
    def get(self, key: CacheKey) -> None:
        found = next((entry for entry in self.model if entry[0] == key), None)
        if found is not None:
            self.model.remove(found)
            if found[2] > self.now:
                self.model.append(found)
            else:
                found = None
        assert self.store.get(key, self.now) == (found[1] if found else None)

    @rule(key=keys)
    def discard(self, key: CacheKey) -> None:
        self.store.discard(key)
        self.model = [entry for entry in self.model if entry[0] != key]

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def sizes_agree_and_keep_their_bounds(self) -> None:
        assert len(self.store) == len(self.model) <= MAX_ENTRIES
        assert self.store.num_bytes == self._cost() <= MAX_BYTES


TestMemoryStoreAgainstAList = MemoryStoreAgainstAList.TestCase


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
