"""Bounds of the prompt cache; the gateway's settings fill it in."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from prompt_cache.eviction import EvictionPolicy
from prompt_cache.redis_tls import TlsFiles

_MIN_SECRET_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where answers are kept, for how long, and what a lookup may cost.

    Raises:
        ValueError: a field is out of its range; names it, the value and the range.
    """

    # Redis that gateways share, such as "redis://127.0.0.1:6379/0"; None = the process's own store alone.
    redis_url: str | None
    # For a "rediss://".
    redis_tls: TlsFiles = field(default_factory=TlsFiles)
    # Keys the names of entries and encrypts them; gateways that share a Redis share it. At least 16 bytes.
    secret: bytes = field(repr=False)
    # Secrets that were used before, the latest first: what they sealed can be read still. Names are made with the oldest of all, so that a
    # new secret forgets nothing; without the old ones everything is new.
    old_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    # How long an answer stays in Redis.
    ttl_s: float = 3600.0
    # How long an answer stays in the process; never longer than what is left of it in Redis.
    l0_ttl_s: float = 60.0
    # Bytes and entries the process's own store may hold; 0 entries = no such store.
    l0_max_bytes: int = 64 * 1024 * 1024
    l0_max_entries: int = 4096
    # Which of them goes when it is full: least recently used, least often, oldest, or of the fewest tokens saved per byte; and how much of it one
    # tenant may fill.
    l0_eviction: EvictionPolicy = "lru"
    l0_tenant_share: float = 1.0
    # Encoded answers longer than this are not kept.
    max_entry_bytes: int = 256 * 1024
    # Answers that may wait to be written to Redis; one more is dropped.
    write_queue_len: int = 256
    # Limit on each wait for Redis: to connect, to send, to receive.
    socket_timeout_s: float = 0.02
    # Limit on a whole lookup, connecting and waiting for a free connection included.
    lookup_timeout_s: float = 0.025
    # How long closing waits for writes that are queued.
    flush_timeout_s: float = 1.0
    # Connections to Redis.
    max_connections: int = 16
    # Failures in a row after which Redis is left alone.
    breaker_failures: int = 5
    # How long it is left alone before it is tried again.
    breaker_open_s: float = 1.0

    _MINIMUM: ClassVar[dict[str, float]] = {
        "ttl_s": 0.001,
        "l0_ttl_s": 0.001,
        "l0_max_bytes": 0,
        "l0_max_entries": 0,
        "max_entry_bytes": 1,
        "write_queue_len": 1,
        "socket_timeout_s": 0.001,
        "lookup_timeout_s": 0.001,
        "flush_timeout_s": 0.001,
        "max_connections": 1,
        "breaker_failures": 1,
        "breaker_open_s": 0.001,
    }

    def __post_init__(self) -> None:
        for secret in self.secrets:
            if len(secret) < _MIN_SECRET_BYTES:
                raise ValueError(f"a secret has {len(secret)} bytes, the least is {_MIN_SECRET_BYTES}")
        for item in fields(self):
            least = self._MINIMUM.get(item.name)
            if least is not None and not getattr(self, item.name) >= least:
                raise ValueError(f"{item.name} is {getattr(self, item.name)}, the least is {least}")

    @property
    def secrets(self) -> tuple[bytes, ...]:
        """All of them, the one that seals first."""
        return (self.secret, *self.old_secrets)
