"""Stores of every back end on servers of their own, empty at the start of each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import redis
from redis.asyncio import Redis

from prompt_cache.vectors.acl import acl_rule
from prompt_cache.vectors.vector_store import StoreLimits, VectorStore
from tests.fakes.redis_servers import SERVERS, RedisServer
from tests.fakes.vector_backends import BACKENDS, NO_JITTER, Backend


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
def raw(backend: Backend, servers: Callable[[str], RedisServer]) -> Iterator[redis.Redis]:
    """A plain client, to look at and to spoil what the store keeps."""
    if backend.server is None:
        pytest.skip("keeps nothing in Redis")
    with redis.Redis.from_url(servers(backend.server).url) as client:
        yield client


@pytest.fixture
async def client(backend: Backend, servers: Callable[[str], RedisServer]) -> AsyncIterator[Redis | None]:
    """The store's client, of an empty server: all that stores do in these tests is done with the least permissions."""
    if backend.server is None:
        yield None
        return
    url = servers(backend.server).url
    connected = await least_privileged(url, backend)
    yield connected
    await connected.aclose()


async def least_privileged(url: str, backend: Backend) -> Redis:
    """A client that may do what the back end needs. Effects: empties the server."""
    async with Redis.from_url(url) as admin:
        await admin.flushall()
        await admin.execute_command(*acl_rule(backend.name).split())  # type: ignore[arg-type, no-untyped-call]
    return Redis.from_url(url, username="triserve", password="PASSWORD")


@pytest.fixture
def make(backend: Backend, client: Redis) -> Callable[..., VectorStore]:
    """Another store of the back end, as another process has it."""

    def another(limits: StoreLimits = NO_JITTER) -> VectorStore:
        return backend.make(client, limits)

    return another


@pytest.fixture
def store(make: Callable[..., VectorStore]) -> VectorStore:
    return make()
