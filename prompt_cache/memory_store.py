"""The process's own store: least recently used goes first, bounded in bytes, entries and age."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from prompt_cache.keys import CacheKey

# What an entry costs beside its value: two strings of the key, the tuple, the dictionary's slot. Rounded up.
ENTRY_OVERHEAD_BYTES = 512


class _Entry(NamedTuple):
    data: bytes
    expires_at: float


class MemoryStore:
    """Encoded answers by key. Pure: the caller brings the time.

    Args:
        max_bytes: bound on values and their overhead together.
        max_entries: bound on entries; 0 keeps nothing.
    """

    def __init__(self, *, max_bytes: int, max_entries: int) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._entries: OrderedDict[CacheKey, _Entry] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all values and their overhead."""
        return self._bytes

    def get(self, key: CacheKey, now: float) -> bytes | None:
        """The value, made the most recently used; None if absent or expired, which removes it.

        Args:
            key: name of the entry.
            now: seconds on the clock of `put`.
        """
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.expires_at <= now:
            self.discard(key)
            return None
        self._entries.move_to_end(key)
        return entry.data

    def put(self, key: CacheKey, data: bytes, *, now: float, ttl_s: float) -> None:
        """Keeps a value for at most `ttl_s` seconds, in place of the key's old one; one that cannot fit is not kept."""
        self.discard(key)
        if ttl_s <= 0 or self._max_entries == 0 or _cost(data) > self._max_bytes:
            return
        self._entries[key] = _Entry(data, now + ttl_s)
        self._bytes += _cost(data)
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            _, evicted = self._entries.popitem(last=False)
            self._bytes -= _cost(evicted.data)

    def discard(self, key: CacheKey) -> None:
        """Removes the key's value, if any."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= _cost(entry.data)


def _cost(data: bytes) -> int:
    return len(data) + ENTRY_OVERHEAD_BYTES
