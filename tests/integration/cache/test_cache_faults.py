"""Whatever happens to Redis, every request is answered; and once Redis is well again, it is used again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import redis as redis_py

from prompt_cache.acl import acl_rule
from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.fakes.redis_servers import RedisServer
from triserve.v1 import common_pb2

CHAT = "/v1/chat/completions"
SETTINGS: dict[str, Any] = {
    "semantic_cache": "on",
    "embedder": "ngrams",
    "semantic_audited_share": 1.0,
    "cache_secret": "0123456789abcdef",
    # Longer than anything takes on a busy machine, short where all is waited for.
    "cache_timeout_ms": 500,
    "semantic_timeout_ms": 500,
}


def says(request: Any) -> list[Say]:
    """A short answer."""
    return [Say("Paris.", [1, 2]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]


@asynccontextmanager
async def asking(url: str) -> AsyncIterator[tuple[GatewayFleet, Callable[..., Any]]]:
    """A gateway on a Redis, and a function that asks it and returns what the cache did."""
    async with running_fleet(computes=[FakeCompute(says)], redis_url=url, **SETTINGS) as fleet, aiohttp.ClientSession(fleet.url) as session:

        async def ask(question: str, **fields: Any) -> str:
            body = {"messages": [{"role": "user", "content": question}], **fields}
            async with session.post(CHAT, json=body) as response:
                assert response.status == 200, await response.text()
                assert (await response.json())["choices"][0]["message"]["content"] == "Paris."
                return response.headers["X-Triserve-Cache"]

        yield fleet, ask


def cache_of(fleet: GatewayFleet) -> Any:
    """The whole cache of the fleet's gateway: exact, by meaning, and its Redis."""
    cache = fleet.service.gateway.pipeline.cache
    assert cache is not None and cache.semantic is not None and cache.cache.guarded is not None
    return cache


async def used_again(ask: Callable[..., Any], cache: Any) -> None:
    """Returns when a question's answer was found by meaning, in Redis.

    Connections of before are found dead one by one, each of them by somebody who is answered without the cache.
    """
    for _ in range(100):
        await eventually(cache.cache.guarded.usable, "Redis is in use")
        await ask("How tall is the Eiffel Tower?")
        await cache.semantic.drain()
        if await ask("how tall is the eiffel tower") == "hit-semantic":
            return
    raise AssertionError("Redis is there and is not used")


async def ask_everything(ask: Callable[..., Any]) -> list[str]:
    """An exact question, one of meaning, and many at once."""
    exact = [await ask("What is the capital of France?", temperature=0) for _ in range(2)]
    near = [await ask(question) for question in ("What is the capital of France?", "what's the capital of france")]
    return [*exact, *near, *await asyncio.gather(*(ask("Who wrote Faust?", temperature=0) for _ in range(10)))]


async def test_a_redis_that_is_not_there_costs_no_request_its_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with asking(f"redis://127.0.0.1:{port}/0") as (fleet, ask):
        await ask_everything(ask)
        assert cache_of(fleet).cache.stats.errors


async def test_a_redis_that_hangs_costs_no_request_its_answer_and_is_used_again(own_server: RedisServer) -> None:
    async with asking(own_server.url) as (fleet, ask):
        cache = cache_of(fleet)
        await cache.semantic.opened()
        await ask_everything(ask)
        own_server.pause()
        await ask_everything(ask)
        own_server.resume()
        await used_again(ask, cache)


async def test_while_redis_hangs_a_question_is_not_explained_and_the_client_hears_why(own_server: RedisServer) -> None:
    async with asking(own_server.url) as (fleet, ask), aiohttp.ClientSession(fleet.url) as session:
        await cache_of(fleet).semantic.opened()
        await ask("What is the capital of France?")
        own_server.pause()
        async with session.post("/v1/cache/explain", json={"messages": [{"role": "user", "content": "a"}]}) as response:
            assert response.status == 503
            assert (await response.json())["error"]["message"] == "the store of the semantic cache cannot be asked now"
        own_server.resume()


async def test_a_redis_that_dies_and_comes_back_empty_is_used_again(own_server: RedisServer) -> None:
    async with asking(own_server.url) as (fleet, ask):
        cache = cache_of(fleet)
        await cache.semantic.opened()
        await ask_everything(ask)
        own_server.kill()
        await ask_everything(ask)
        own_server.start()
        await used_again(ask, cache)


@pytest.mark.parametrize("fault", ["wrong password", "no permission", "full"])
async def test_a_redis_that_refuses_costs_no_request_its_answer(own_server: RedisServer, fault: str) -> None:
    with redis_py.Redis.from_url(own_server.url) as admin:
        url = own_server.url
        if fault == "wrong password":
            url = own_server.url.replace("redis://", "redis://default:wrong@")
            admin.config_set("requirepass", "right")
        elif fault == "no permission":
            admin.execute_command("ACL", "SETUSER", "nobody", "on", ">secret", "~*", "-@all", "+ping")
            url = own_server.url.replace("redis://", "redis://nobody:secret@")
        else:
            admin.config_set("maxmemory", 1)
    async with asking(url) as (fleet, ask):
        statuses = await ask_everything(ask)
        assert "hit-semantic" not in statuses, "what is found by meaning lies in Redis, which keeps nothing"
        assert cache_of(fleet).cache.stats.errors


async def test_values_that_somebody_spoils_are_misses_and_go(own_server: RedisServer) -> None:
    with redis_py.Redis.from_url(own_server.url) as admin:
        async with asking(own_server.url) as (fleet, ask):
            cache = cache_of(fleet)
            await cache.semantic.opened()
            await ask_everything(ask)
            await cache.semantic.drain()
            keys = list(admin.keys("triserve:cache:*"))
            assert keys
            for number, key in enumerate(keys):
                admin.delete(key)
                if number % 2:
                    admin.set(key, b"rubbish")
                else:
                    admin.rpush(key, b"rubbish")
            await ask_everything(ask)
            await used_again(ask, cache)
            assert await ask("what's the capital of france") == "hit-semantic", "what was spoiled is kept anew"


@pytest.mark.parametrize("name", ["vector-sets", "flat"])
async def test_a_user_who_may_do_no_more_than_is_documented_has_the_whole_cache(own_server: RedisServer, name: Any) -> None:
    with redis_py.Redis.from_url(own_server.url) as admin:
        admin.execute_command(*acl_rule(name, password="secret").split())
        async with asking(own_server.url.replace("redis://", "redis://triserve:secret@")) as (fleet, ask):
            cache = cache_of(fleet)
            await cache.semantic.opened()
            await ask_everything(ask)
            await cache.semantic.drain()
            statuses = await ask_everything(ask)
            assert statuses[:4] == ["hit-exact", "hit-exact", "hit-semantic", "hit-semantic"] and set(statuses[4:]) == {"hit-exact"}
            await cache.semantic.drain()
            assert cache.cache.stats.errors == 0 and cache.semantic.store is not None and cache.semantic.store.name == name
            denied = [entry for entry in admin.acl_log() if entry["username"] == "triserve"]
            assert not denied or name == "flat", "flat is what is left where a user may not use vector sets"
