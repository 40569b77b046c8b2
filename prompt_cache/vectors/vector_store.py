"""What every store of vectors is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

if TYPE_CHECKING:
    # numpy is the embedders' and the matrix's: whoever caches exact answers alone has none.
    from prompt_cache.embedding.embedder import Vector
from prompt_cache.eviction import EvictionPolicy

# In Redis, fastest first.
BackendName = Literal["query-engine", "vector-sets", "flat"]

# Ten years.
_MAX_TTL_S = 10 * 366 * 24 * 3600

# Of one entry; the oldest goes.
MAX_OBSERVATIONS = 64


class Observation(NamedTuple):
    """What a comparison with the model's own answer showed.

    Attributes:
        cosine: Between the question asked and that of the entry.
        is_same: Whether the entry's answer was as good as the model's.
    """

    cosine: float
    is_same: bool


class Neighbour(NamedTuple):
    """An entry near a vector.

    Attributes:
        entry_id: Its name in its scope.
        cosine: Between its vector and the one asked for, in [-1, 1].
        data: The entry, sealed.
        observations: Of this entry, oldest first, the last 64; cosines are rounded to float32.
        ttl_s: Seconds it has left.
    """

    entry_id: str
    cosine: float
    data: bytes
    observations: tuple[Observation, ...]
    ttl_s: float


@dataclass(frozen=True, kw_only=True)
class StoreLimits:
    """Bounds of a scope.

    Attributes:
        max_entries: Of one scope; one more evicts by the policy.
        max_bytes: Of sealed entries of one scope.
        max_entry_bytes: Of one sealed entry; a longer one is refused, and if somebody else put it there, it is not fetched but removed.
        policy: Who goes first: least recently hit, least often hit, oldest, or least tokens saved per byte (greedy-dual size frequency).
        ttl_jitter: Share of the time to live by which it is shortened at random, so that what was written together does not end together.

    Raises:
        ValueError: a field is out of its range; names it, the value and the range.
    """

    max_entries: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    max_entry_bytes: int = 256 * 1024
    policy: EvictionPolicy = "lru"
    ttl_jitter: float = 0.1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.startswith("max_") and not value >= 1:
                raise ValueError(f"{item.name} is {value}, the least is 1")
        if self.policy not in get_args(EvictionPolicy):
            raise ValueError(f"policy is {self.policy!r}, must be one of {', '.join(get_args(EvictionPolicy))}")
        if not 0 <= self.ttl_jitter < 1:
            raise ValueError(f"ttl_jitter is {self.ttl_jitter}, must be in [0, 1)")


def check_entry(data: bytes, ttl_s: float, saved_tokens: int, limits: StoreLimits) -> None:
    """Raises ValueError for what no store keeps."""
    most = min(limits.max_entry_bytes, limits.max_bytes)
    if not 0 < len(data) <= most:
        raise ValueError(f"data has {len(data)} bytes, must have 1 to {most}")
    if not 0 < ttl_s <= _MAX_TTL_S:
        raise ValueError(f"ttl_s is {ttl_s}, must be over 0 and at most {_MAX_TTL_S}")
    if not 0 <= saved_tokens < 2**32:
        raise ValueError(f"saved_tokens is {saved_tokens}, must be in [0, 2**32)")


class VectorStore(Protocol):
    """Entries by vector, apart by scope.

    Everything may raise what redis-py raises, and TimeoutError; and ValueError for a scope that is not lower-case hex, an entry id of other
    characters than letters, digits, "_" and "-", and a vector of other dimensions or without a direction. All keys of a scope share a hash tag.
    """

    @property
    def name(self) -> str:
        """Of the back end: "query-engine", "vector-sets", "flat" or "local"."""

    @property
    def corrupt(self) -> int:
        """How often something was found in place of an entry or of a scope's records that nobody here wrote, and was removed."""

    async def search(self, scope: str, vector: Vector, k: int) -> list[Neighbour]:
        """The nearest entries of the scope, nearest first; expired and evicted ones are not among them."""

    async def add(self, scope: str, entry_id: str, vector: Vector, data: bytes, *, ttl_s: float, saved_tokens: int) -> None:
        """Keeps an entry, in place of the one of that name.

        Args:
            data: Not empty, at most `max_entry_bytes` and `max_bytes`.
            saved_tokens: What a hit saves, for the cost-aware policy.

        Effects: evicts entries of the scope to make room. Where that takes more than a script may do at once, the entry is not kept.
        """

    async def hit(self, scope: str, entry_id: str) -> None:
        """Notes that an entry was served, for eviction."""

    async def observe(self, scope: str, entry_id: str, observation: Observation) -> None:
        """Adds an observation to an entry, if it still exists.

        Raises:
            ValueError: its cosine is none.
        """

    async def remove(self, scope: str, entry_ids: Sequence[str]) -> None:
        """Removes entries."""

    async def purge(self, scope: str) -> None:
        """Removes the scope and everything in it."""

    async def count(self, scope: str) -> int:
        """Number of entries, of which some may have expired."""
