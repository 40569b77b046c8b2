"""What many or malicious clients may take of a gateway: no body, however made, and no tenant keeps the others out."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.fakes.hostile_bodies import HOSTILE_BODIES, HostileBody

COMPLETION = "/v1/completions"
JSON = {"Content-Type": "application/json"}


async def ask(session: aiohttp.ClientSession, **body: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(COMPLETION, json={"prompt": "a", **body}) as response:
        return response.status, await response.json()


@pytest.mark.slow
@pytest.mark.parametrize("route", sorted({hostile.route for hostile in HOSTILE_BODIES}))
async def test_every_body_of_four_megabytes_is_refused_in_few_words_while_others_are_answered(route: str) -> None:
    async with running_fleet(computes=[FakeCompute(max_model_len_tokens=64)]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for hostile in (one for one in HOSTILE_BODIES if one.route == route):
            asking = asyncio.create_task(_status_and_answer(session, hostile))
            async with session.get("/health") as response:
                assert response.status == 200, hostile.name
            status, answer = await asking
            assert status == hostile.status, (hostile.name, answer[:500])
            # The name of an unknown field is shown twice, at most 128 characters of it, each escaped to six.
            assert len(answer) < 2000, hostile.name
            assert fleet.service.gateway.bodies.budget.used == fleet.active == 0, hostile.name
        assert len(fleet.compute.submitted) == sum(one.route == route and one.status == 200 for one in HOSTILE_BODIES)
        assert (await ask(session, max_tokens=1))[0] == 200


async def _status_and_answer(session: aiohttp.ClientSession, hostile: HostileBody) -> tuple[int, bytes]:
    async with session.post(hostile.route, data=io.BytesIO(hostile.body()), headers=JSON) as response:
        return response.status, await response.read()


@asynccontextmanager
async def stalled(fleet: GatewayFleet, count: int, *, length: int, sent: bytes = b"{", key: str = "") -> AsyncIterator[None]:
    """So many requests whose bodies have begun and do not go on."""
    head = f"POST {COMPLETION} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    writers = []
    try:
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", fleet.service.port)
            writers.append(writer)
            writer.write(head.encode() + b"\r\n" + sent)
            await writer.drain()
        yield
    finally:
        for writer in writers:
            writer.close()


async def test_bodies_that_do_not_come_take_no_place() -> None:
    async with running_fleet(max_active_requests=2) as fleet, aiohttp.ClientSession(fleet.url) as session:
        async with stalled(fleet, 8, length=4_000_000):
            budget = fleet.service.gateway.bodies.budget
            await eventually(lambda: budget.used == 8, "what came of every body is counted")
            assert fleet.active == 0
            assert (await ask(session))[0] == 200
        await eventually(lambda: budget.used == 0, "what they held came back")


async def test_bodies_under_way_have_a_budget_of_bytes_together() -> None:
    sent = b"{" + b" " * 1999
    async with running_fleet(max_bodies_bytes=5000, max_body_bytes=4096) as fleet, aiohttp.ClientSession(fleet.url) as session:
        budget = fleet.service.gateway.bodies.budget
        async with stalled(fleet, 2, length=4000, sent=sent):
            await eventually(lambda: budget.used == 4000)
            async with session.post(COMPLETION, data=sent, headers=JSON) as response:
                assert response.status == 429
                assert response.headers["Retry-After"] == "1"
                assert "4000 bytes of bodies are under way, the limit is 5000" in (await response.json())["error"]["message"]
            assert (await ask(session))[0] == 200
        await eventually(lambda: budget.used == 0)
        async with session.post(COMPLETION, data=sent, headers=JSON) as response:
            assert response.status == 400


async def test_a_body_is_held_until_its_answer_is_delivered() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        task = asyncio.create_task(ask(session))
        await eventually(lambda: fleet.compute.submitted)
        assert fleet.service.gateway.bodies.budget.used > 0
        fleet.compute.flowing.set()
        await task
        await eventually(lambda: fleet.service.gateway.bodies.budget.used == 0)


@asynccontextmanager
async def two_tenants(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[GatewayFleet, aiohttp.ClientSession, aiohttp.ClientSession]]:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{tenant} {hashlib.sha256(tenant.encode()).hexdigest()}\n" for tenant in ("greedy", "modest")))
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(running_fleet(api_keys_file=keys, **settings))
        sessions = [
            await stack.enter_async_context(aiohttp.ClientSession(fleet.url, headers={"Authorization": f"Bearer {tenant}"}))
            for tenant in ("greedy", "modest")
        ]
        yield fleet, sessions[0], sessions[1]


async def test_a_tenant_that_takes_all_it_can_leaves_places_to_others(tmp_path: Path) -> None:
    async with two_tenants(tmp_path, max_active_requests=16) as (fleet, greedy, modest):
        fleet.compute.flowing.clear()
        tasks = [asyncio.create_task(ask(greedy)) for _ in range(14)]
        await eventually(lambda: fleet.active == 14)
        status, refusal = await ask(greedy)
        assert (status, refusal["error"]["code"]) == (429, "overloaded")
        other = asyncio.create_task(ask(modest))
        await eventually(lambda: fleet.active == 15)
        fleet.compute.flowing.set()
        assert {status for status, _ in await asyncio.gather(*tasks, other)} == {200}


async def test_a_tenants_stalled_bodies_leave_bytes_to_others(tmp_path: Path) -> None:
    async with (
        two_tenants(tmp_path, max_body_bytes=1024, max_bodies_bytes=8192) as (fleet, greedy, modest),
        stalled(fleet, 7, length=1024, sent=b"{" + b" " * 1022, key="greedy"),
    ):
        await eventually(lambda: fleet.service.gateway.bodies.budget.used == 7 * 1023)
        assert (await ask(greedy, stop="x" * 200))[0] == 429
        assert (await ask(modest, stop="x" * 200))[0] == 200


async def test_a_few_requests_of_many_answers_leave_places_to_others() -> None:
    async with running_fleet(max_active_requests=64) as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        wide = [asyncio.create_task(ask(session, prompt=["a"] * 4, n=4)) for _ in range(4)]
        await eventually(lambda: any(task.done() for task in wide), "one of the four is refused")
        narrow = [asyncio.create_task(ask(session)) for _ in range(8)]
        await eventually(lambda: fleet.active == 3 * 16 + 8)
        fleet.compute.flowing.set()
        assert sorted([status for status, _ in await asyncio.gather(*wide)]) == [200, 200, 200, 429]
        assert {status for status, _ in await asyncio.gather(*narrow)} == {200}
