"""Requests follow their prefixes: a replica's own word decides, over real gRPC, and one that says nothing harms nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from gateway.clients.prefix_index import prompt_pages
from tests.fakes.fake_compute import FakeCompute
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.v1 import compute_pb2

SIZE = 4
PROMPT = list(range(1, 42))


def telling() -> FakeCompute:
    """A replica whose prefix cache tells what the test says."""
    compute = FakeCompute(page_size_tokens=SIZE)
    compute.kv_events = asyncio.Queue()
    return compute


def stored(num_pages: int, **fields: Any) -> compute_pb2.WatchKvEventsResponse:
    return compute_pb2.WatchKvEventsResponse(stored=prompt_pages("default", PROMPT, SIZE)[:num_pages], **fields)


def known(fleet: GatewayFleet) -> list[int]:
    return [len(peer.prefixes) for peer in fleet.service.gateway.fleet.computes]


async def ask(session: aiohttp.ClientSession) -> None:
    async with session.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 1}) as response:
        assert response.status == 200, await response.text()


async def test_a_prompt_goes_to_the_replica_that_says_it_has_it() -> None:
    computes = [telling(), telling(), telling()]
    async with running_fleet(computes=computes, cache=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        computes[2].kv_events.put_nowait(stored(9, reset=True))  # type: ignore[union-attr]
        await eventually(lambda: known(fleet) == [0, 0, 9])
        for _ in range(4):
            await ask(session)
        assert [len(compute.submitted) for compute in computes] == [0, 0, 4]
        async with session.get("/metrics") as response:
            assert f'triserve_prefix_pages{{peer="{computes[2].target}"}} 9.0' in await response.text()


async def test_a_replica_that_is_lost_or_begins_anew_is_known_to_hold_nothing() -> None:
    computes = [telling(), telling()]
    async with running_fleet(computes=computes, cache=False) as fleet:
        for compute in computes:
            compute.kv_events.put_nowait(stored(5, reset=True))  # type: ignore[union-attr]
        await eventually(lambda: known(fleet) == [5, 5])
        computes[0].kv_events.put_nowait(compute_pb2.WatchKvEventsResponse(reset=True))  # type: ignore[union-attr]
        await computes[1].kill()
        await eventually(lambda: known(fleet) == [0, 0])


async def test_a_replica_without_a_prefix_cache_serves_as_ever() -> None:
    computes = [FakeCompute(), FakeCompute()]
    async with running_fleet(computes=computes, cache=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for _ in range(4):
            await ask(session)
        assert sum(len(compute.submitted) for compute in computes) == 4


async def test_what_is_known_is_bounded_in_bytes() -> None:
    computes = [telling(), telling()]
    async with running_fleet(computes=computes, cache=False, prefix_index_bytes=700) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for compute in computes:
            compute.kv_events.put_nowait(stored(5, reset=True))  # type: ignore[union-attr]
        await eventually(lambda: sum(known(fleet)) == 7)
        async with session.get("/metrics") as response:
            assert "triserve_prefix_pages_dropped_total" in await response.text()


async def test_one_replica_alone_is_not_asked() -> None:
    compute = telling()
    async with running_fleet(computes=[compute], cache=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        compute.kv_events.put_nowait(stored(5, reset=True))  # type: ignore[union-attr]
        await ask(session)
        assert known(fleet) == [0] and compute.kv_events.qsize() == 1  # type: ignore[union-attr]
