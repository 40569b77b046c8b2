"""Finds out what a Redis can do, picks a back end that works there, and says what an operator should change."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from prompt_cache.vectors.query_engine import QueryEngine, WrongIndex
from prompt_cache.vectors.scripted_store import ScriptedStore, execute
from prompt_cache.vectors.vector_sets import VectorSets
from prompt_cache.vectors.vector_store import BackendName, StoreLimits, VectorStore

if TYPE_CHECKING:
    from prompt_cache.embedding.embedder import Vector

Want = Literal["auto", "query-engine", "vector-sets", "flat"]

# Fastest first; flat needs none.
_NEEDED_COMMANDS: dict[BackendName, tuple[str, ...]] = {
    "query-engine": ("FT.CREATE", "FT.INFO", "FT.SEARCH"),
    "vector-sets": ("VADD", "VCARD", "VREM", "VSIM"),
    "flat": (),
}

_TEST_TTL_S = 60.0
_MAX_COSINE_ERROR = 1e-3

_SETTINGS = ("maxmemory", "maxmemory-policy")
_SET_POLICY = "set maxmemory-policy volatile-lfu"


class NoVectorStore(Exception):
    """No back end, or not the one that was asked for, works on this Redis; says why."""


class SelfTestFailed(Exception):
    """A back end took an entry and does not give it back."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A back end that works.

    Attributes:
        store: Ready for use.
        server: What it runs on, such as "Redis 8.2.3".
        passed_over: Why a back end that would come first is not used: one sentence each.
        advice: What an operator should change in the server's settings: one sentence each.
    """

    store: VectorStore
    server: str
    passed_over: tuple[str, ...]
    advice: tuple[str, ...]


async def choose(
    redis: Redis, want: Want, *, embedder_id: str, dimensions: int, limits: StoreLimits, max_resident_bytes: int = 256 * 1024 * 1024
) -> Choice:
    """A back end that keeps, finds and removes an entry on this Redis.

    Args:
        redis: a client that does not decode replies.
        want: the back end, or "auto" = the fastest that works.
        embedder_id: of the embedder whose vectors are kept.
        dimensions: of its vectors.
        limits: of each scope.
        max_resident_bytes: what the flat store may keep in the process.

    Effects: adds and removes an entry in a scope of its own; the query engine's index is created. No setting is changed.

    Raises:
        NoVectorStore: none works, or not the one that was asked for.
        redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: Redis is not there.
    """
    makers: dict[BackendName, Callable[[], ScriptedStore]] = {
        "query-engine": lambda: QueryEngine(redis, embedder_id=embedder_id, dimensions=dimensions, limits=limits),
        "vector-sets": lambda: VectorSets(redis, dimensions=dimensions, limits=limits),
        "flat": lambda: _flat(redis, dimensions, limits, max_resident_bytes),
    }
    names: tuple[BackendName, ...] = get_args(BackendName) if want == "auto" else (want,)
    passed_over: list[str] = []
    for name in names:
        reason = await _missing_commands(redis, name)
        if reason is None:
            store = makers[name]()
            try:
                await _test(store, dimensions)
            except (ResponseError, SelfTestFailed, WrongIndex) as error:
                reason = f"{name}: {error}"
            else:
                server, advice = await _look(redis)
                return Choice(store=store, server=server, passed_over=tuple(passed_over), advice=advice)
        passed_over.append(reason)
    raise NoVectorStore("; ".join(passed_over))


def _flat(redis: Redis, dimensions: int, limits: StoreLimits, max_resident_bytes: int) -> ScriptedStore:
    # Not at the top: numpy is this back end's alone.
    from prompt_cache.vectors.flat import FlatStore  # noqa: PLC0415

    return FlatStore(redis, dimensions=dimensions, limits=limits, max_resident_bytes=max_resident_bytes)


async def _missing_commands(redis: Redis, name: BackendName) -> str | None:
    """Which commands the server lacks, as a sentence; None if none, or if it does not say: then the test shows it."""
    needed = _NEEDED_COMMANDS[name]
    if not needed:
        return None
    try:
        known = await execute(redis, "COMMAND INFO", *needed)
    except ResponseError:
        return None
    missing = [command for command, about in zip(needed, known, strict=True) if not about]
    return f"{name}: the server does not know {', '.join(missing)}" if missing else None


async def _test(store: ScriptedStore, dimensions: int) -> None:
    import numpy as np  # noqa: PLC0415 - whoever has vectors has numpy, whoever only imports this may not

    vector: Vector = np.random.default_rng().standard_normal(dimensions).astype(np.float32)
    scope, data = secrets.token_hex(16), secrets.token_bytes(16)
    if isinstance(store, QueryEngine):
        await store.prepare()
    try:
        await store.add(scope, "test", vector, data, ttl_s=_TEST_TTL_S, saved_tokens=1)
        hits = await store.search(scope, vector, 1)
        if [(hit.entry_id, hit.data) for hit in hits] != [("test", data)]:
            raise SelfTestFailed("an entry that was added is not found")
        if abs(hits[0].cosine - 1) > _MAX_COSINE_ERROR:
            raise SelfTestFailed(f"the cosine of a vector to itself is {hits[0].cosine}")
        await store.remove(scope, ["test"])
        if await store.search(scope, vector, 1):
            raise SelfTestFailed("an entry that was removed is found")
    finally:
        await store.purge(scope)


async def _look(redis: Redis) -> tuple[str, tuple[str, ...]]:
    """What the server is, and what about its settings should be changed."""
    server = "a server that does not say what it is"
    try:
        about: dict[str, Any] = await redis.info("server")
        product = "Valkey" if about.get("server_name") == "valkey" else "Redis"
        server = f"{product} {about.get('valkey_version') or about.get('redis_version')}"
        memory: dict[str, Any] = await redis.info("memory")
        found = {name: memory[name.replace("-", "_")] for name in _SETTINGS}
    except (ResponseError, KeyError):
        try:
            config: dict[Any, Any] = await redis.config_get("maxmemory*")
            found = {_text(name): _text(value) for name, value in config.items()}
        except ResponseError:
            why = "could not look at maxmemory and maxmemory-policy, for want of permission for INFO and CONFIG GET"
            return server, (f"{why}: make sure that maxmemory is set, and {_SET_POLICY}",)
    return server, _advice(int(found["maxmemory"]), str(found["maxmemory-policy"]))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _advice(maxmemory: int, policy: str) -> tuple[str, ...]:
    if maxmemory == 0:
        return (f"maxmemory is 0: Redis grows until the machine has no memory left; set maxmemory, and {_SET_POLICY}",)
    if policy == "noeviction":
        return (f"maxmemory-policy is noeviction: once Redis is full it takes no new entries; {_SET_POLICY}",)
    if policy.startswith("allkeys-") or policy == "volatile-random":
        return (f"maxmemory-policy is {policy}: it may evict the records or the vector set of a whole scope at once; {_SET_POLICY}",)
    return ()
