"""The probe picks what works on a server, says why not the rest, and what to change; under users who may do little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from prompt_cache.vectors.acl import COMMANDS, KEY_PATTERN, acl_rule
from prompt_cache.vectors.keyspace import PREFIX
from prompt_cache.vectors.probe import Choice, NoVectorStore, Want, choose
from prompt_cache.vectors.query_engine import QueryEngine
from prompt_cache.vectors.vector_store import BackendName, Observation, StoreLimits
from tests.fakes.redis_servers import RedisServer
from tests.fakes.vector_backends import BACKENDS, DIMENSIONS, NO_JITTER, SCOPE, Backend, at, found, keep

Servers = Callable[[str], RedisServer]


@asynccontextmanager
async def connected(servers: Servers, kind: str, rule: str | None = None, *, protocol: int = 3) -> AsyncIterator[Redis]:
    """A client of an empty server; of a user made by a rule, if given."""
    url = servers(kind).url
    async with Redis.from_url(url) as admin:
        await admin.flushall()
        if rule is not None:
            await admin.execute_command("ACL", "DELUSER", "triserve")  # type: ignore[no-untyped-call]
            await admin.execute_command(*rule.split())  # type: ignore[no-untyped-call]
    async with Redis.from_url(url if rule is None else url.replace("//", "//triserve:PASSWORD@"), protocol=protocol) as client:
        yield client


async def chosen(client: Redis, want: Want = "auto") -> Choice:
    return await choose(client, want, embedder_id="test", dimensions=DIMENSIONS, limits=NO_JITTER)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    ("kind", "name", "version", "missing"),
    [
        ("query-engine", "query-engine", "Redis 8.2.", []),
        ("vectors", "vector-sets", "Redis 8.2.", ["FT.SEARCH"]),
        ("plain", "flat", "Redis ", ["FT.SEARCH", "VSIM"]),
    ],
)
async def test_the_fastest_that_works_is_picked_and_leaves_nothing_behind(
    servers: Servers, kind: str, name: str, version: str, missing: list[str], protocol: int
) -> None:
    async with connected(servers, kind, protocol=protocol) as client:
        choice = await chosen(client)
        assert (choice.store.name, choice.server[: len(version)]) == (name, version)
        assert [command in reason for command, reason in zip(missing, choice.passed_over, strict=True)] == [True] * len(missing)
        assert await client.keys("*") == []
        await keep(choice.store, "a")
        assert await found(choice.store) == ["a"]


@pytest.mark.parametrize(("want", "command"), [("query-engine", "FT.SEARCH"), ("vector-sets", "VSIM")])
async def test_one_that_was_asked_for_and_is_not_there_is_an_error_that_names_the_command(
    servers: Servers, want: Want, command: str
) -> None:
    async with connected(servers, "plain") as client:
        with pytest.raises(NoVectorStore, match=rf"^{want}: the server does not know .*{command}"):
            await chosen(client, want)


@pytest.mark.parametrize("want", ["vector-sets", "flat"])
async def test_one_that_was_asked_for_is_picked_though_a_faster_one_works(servers: Servers, want: Want) -> None:
    async with connected(servers, "query-engine") as client:
        choice = await chosen(client, want)
        assert (choice.store.name, choice.passed_over) == (want, ())


async def test_commands_that_the_user_may_not_use_are_passed_over_with_the_reason(servers: Servers) -> None:
    async with connected(servers, "query-engine", acl_rule("flat")) as client:
        choice = await chosen(client)
        assert choice.store.name == "flat"
        assert [reason.split(":")[0] for reason in choice.passed_over] == ["query-engine", "vector-sets"]
        assert "permission" in choice.passed_over[0]
        with pytest.raises(NoVectorStore, match="permission"):
            await chosen(client, "vector-sets")


async def test_without_permission_to_look_it_says_that_it_could_not(servers: Servers) -> None:
    async with connected(servers, "vectors", acl_rule("vector-sets") + " -info -command|info") as client:
        choice = await chosen(client)
        assert (choice.store.name, choice.server) == ("vector-sets", "a server that does not say what it is")
        assert "could not look" in choice.advice[0]


async def test_where_only_config_may_be_read_that_is_read(servers: Servers) -> None:
    async with connected(servers, "vectors", acl_rule("vector-sets") + " -info +config|get") as client:
        choice = await chosen(client)
        assert "maxmemory is 0" in choice.advice[0]


@pytest.mark.parametrize(
    ("maxmemory", "policy", "says"),
    [
        ("0", "volatile-lfu", "maxmemory is 0"),
        ("50mb", "noeviction", "takes no new entries"),
        ("50mb", "allkeys-lru", "vector set of a whole scope"),
        ("50mb", "allkeys-random", "vector set of a whole scope"),
        ("50mb", "volatile-random", "vector set of a whole scope"),
        ("50mb", "volatile-lfu", None),
        ("50mb", "volatile-lru", None),
        ("50mb", "volatile-ttl", None),
    ],
)
async def test_settings_under_which_a_cache_fails_are_named_and_left_alone(
    servers: Servers, maxmemory: str, policy: str, says: str | None
) -> None:
    async with connected(servers, "vectors") as admin:
        await admin.config_set("maxmemory", maxmemory)
        await admin.config_set("maxmemory-policy", policy)
        before = await admin.config_get("*")
        try:
            advice = (await chosen(admin)).advice
            assert await admin.config_get("*") == before
        finally:
            await admin.config_set("maxmemory", "0")
            await admin.config_set("maxmemory-policy", "noeviction")
    assert [says in each and "volatile-lfu" in each for each in advice if says] == [True] * bool(says)
    assert bool(advice) == bool(says)


@pytest.mark.parametrize("name", list(COMMANDS))
async def test_a_full_server_still_finds_and_refuses_what_is_new(servers: Servers, name: BackendName) -> None:
    server = BACKENDS[name].server
    assert server is not None
    async with connected(servers, server) as admin:
        store = BACKENDS[name].make(admin, NO_JITTER)
        await keep(store, "a")
        await admin.config_set("maxmemory", "1")
        try:
            for entry_id in ("b", "a"):
                with pytest.raises(redis.exceptions.ResponseError, match="maxmemory"):
                    await keep(store, entry_id, data=b"new")
            [hit] = await store.search(SCOPE, at(1), 5)
            assert (hit.entry_id, hit.data) == ("a", b"a")
            await store.remove(SCOPE, ["a"])
            assert await found(store) == []
        finally:
            await admin.config_set("maxmemory", "0")


async def test_a_vector_set_of_other_vectors_under_our_name_costs_the_scope_once(servers: Servers) -> None:
    async with connected(servers, "vectors") as admin:
        store = BACKENDS["vector-sets"].make(admin, NO_JITTER)
        for operation in (lambda: found(store), lambda: keep(store, "b")):
            await keep(store, "a")
            [key] = await admin.keys(f"{PREFIX}*:v")
            await admin.delete(key)
            await admin.execute_command("VADD", key, "VALUES", 2, 1, 1, "a")  # type: ignore[no-untyped-call]
            with pytest.raises(redis.exceptions.ResponseError, match="mismatch"):
                await operation()
            assert await found(store) == []


@pytest.mark.slow
async def test_in_a_cluster_no_script_leaves_its_node(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, settings=("--cluster-enabled", "yes"))
    try:
        async with Redis.from_url(server.url) as client:
            for first in range(0, 16384, 1024):
                await client.execute_command("CLUSTER ADDSLOTS", *range(first, first + 1024))  # type: ignore[no-untyped-call]
            while (await client.cluster("INFO"))["cluster_state"] != "ok":
                # A node that has just come up takes no commands for two seconds; it waits here for a replica that does not exist.
                await client.execute_command("WAIT", 1, 50)  # type: ignore[no-untyped-call]
            names: tuple[BackendName, ...] = ("vector-sets", "flat")
            for name in names:
                await use_all_of(await chosen(client, name), name, client, client)
    finally:
        server.kill()


async def test_on_a_full_server_nothing_works_and_that_is_said(servers: Servers) -> None:
    async with connected(servers, "vectors") as admin:
        await admin.config_set("maxmemory", "1")
        try:
            with pytest.raises(NoVectorStore, match="maxmemory"):
                await chosen(admin)
        finally:
            await admin.config_set("maxmemory", "0")


async def test_a_server_that_is_not_there_is_no_server_without_commands(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    server.kill()
    async with Redis.from_url(server.url, retry=None) as client:
        with pytest.raises(redis.exceptions.ConnectionError):
            await chosen(client)


async def test_an_index_of_other_vectors_under_our_name_is_never_read(servers: Servers) -> None:
    async with connected(servers, "query-engine") as client:
        store = QueryEngine(client, embedder_id="test", dimensions=DIMENSIONS, limits=NO_JITTER)
        schema = ("v", "VECTOR", "FLAT", 6, "TYPE", "FLOAT32", "DIM", 3, "DISTANCE_METRIC", "L2")
        await client.execute_command("FT.CREATE", store.index_name, "ON", "HASH", "SCHEMA", *schema)  # type: ignore[no-untyped-call]
        with pytest.raises(NoVectorStore, match="none of ours"):
            await chosen(client, "query-engine")
        assert (await chosen(client)).store.name == "vector-sets"


async def test_embedders_and_dimensions_have_indexes_of_their_own(servers: Servers) -> None:
    async with connected(servers, "query-engine") as client:
        stores = [QueryEngine(client, embedder_id=embedder, dimensions=DIMENSIONS, limits=NO_JITTER) for embedder in ("one", "other")]
        shorter = QueryEngine(client, embedder_id="one", dimensions=3, limits=NO_JITTER)
        assert len({store.index_name for store in (*stores, shorter)}) == 3
        await keep(stores[0], "a")
        assert await found(stores[0]) == ["a"]
        assert await found(stores[1]) == []
        assert await shorter.search(SCOPE, at(1)[:3], 1) == []


async def test_an_index_that_somebody_dropped_is_made_again_and_finds_the_entries(servers: Servers) -> None:
    async with connected(servers, "query-engine") as client:
        store = QueryEngine(client, embedder_id="test", dimensions=DIMENSIONS, limits=NO_JITTER)
        await keep(store, "a")
        await client.execute_command("FT.DROPINDEX", store.index_name)  # type: ignore[no-untyped-call]
        while await found(store) != ["a"]:
            # Redis fills an index in the background, a piece whenever it has answered somebody.
            await client.ping()


@pytest.mark.parametrize("name", list(COMMANDS))
async def test_a_back_end_uses_exactly_the_commands_of_its_rule(servers: Servers, name: BackendName) -> None:
    backend: Backend = BACKENDS[name]
    assert backend.server is not None
    async with connected(servers, backend.server, acl_rule(name)) as client, Redis.from_url(servers(backend.server).url) as admin:
        await admin.config_resetstat()
        choice = await chosen(client, name)
        assert choice.store.name == name
        await use_all_of(choice, name, admin, client)
        stats = await admin.info("commandstats")
    used = {key.removeprefix("cmdstat_").lower() for key in stats}
    connecting = {"hello", "auth", "client|setinfo", "client|maint_notifications", "client", "ping", "select"}
    administering = {"config|resetstat", "config", "keys", "persist", "flushall", "script", "script|flush", "ft._list"}
    assert {command.split("|")[0] for command in used - connecting - administering} == {command.split("|")[0] for command in COMMANDS[name]}


async def use_all_of(choice: Choice, name: BackendName, admin: Redis, client: Redis) -> None:
    """Does everything that a store does, that for which it seldom has reason too."""
    few = await choose(client, name, embedder_id="test", dimensions=DIMENSIONS, limits=StoreLimits(max_entries=1, policy="cost"))
    await keep(few.store, "a")
    await few.store.hit(SCOPE, "a")
    await few.store.observe(SCOPE, "a", Observation(0.5, True))
    for key in await admin.keys(f"{PREFIX}*:e:*:a"):
        await admin.persist(key)
    assert await found(few.store) == ["a"]
    for number in range(1100 if choice.store.name == "flat" else 2):
        await keep(few.store, str(number))
    assert await few.store.count(SCOPE) == 1
    if isinstance(choice.store, QueryEngine):
        await choice.store.prepare()
    await few.store.purge(SCOPE)


@pytest.mark.parametrize("name", list(COMMANDS))
@pytest.mark.parametrize(
    "words", ["KEYS *", "FLUSHALL", "FLUSHDB", "CONFIG SET maxmemory 1", "GET other", "SCAN 0", "SCRIPT FLUSH", "HSET other d x"]
)
async def test_the_rule_allows_nothing_that_harms_others(servers: Servers, name: BackendName, words: str) -> None:
    server = BACKENDS[name].server
    assert server is not None
    async with connected(servers, server, acl_rule(name)) as client:
        with pytest.raises(redis.exceptions.NoPermissionError):
            await client.execute_command(*words.split())  # type: ignore[no-untyped-call]


def test_every_key_is_under_the_pattern_of_the_rule() -> None:
    assert PREFIX.startswith(KEY_PATTERN.removesuffix("*"))


def test_without_numpy_all_but_the_matrix_can_be_imported() -> None:
    modules = "prompt_cache, prompt_cache.vectors.probe, prompt_cache.vectors.query_engine, prompt_cache.vectors.vector_sets"
    subprocess.run([sys.executable, "-c", f"import sys; sys.modules['numpy'] = None; import {modules}"], check=True)
