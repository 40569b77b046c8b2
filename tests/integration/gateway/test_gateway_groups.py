"""Peers of several models are grouped by what they serve: a request is led through one model from its first stage to its last."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS, FINGERPRINT, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.v1 import common_pb2, compute_pb2

SAME_TOKENIZER = common_pb2.Fingerprint(tokenizer_sha256=FINGERPRINT.tokenizer_sha256, weights_revision="99" * 32)
OTHER = common_pb2.Fingerprint(tokenizer_sha256="ef" * 32, weights_revision="98" * 32)
NO_WEIGHTS = common_pb2.Fingerprint(tokenizer_sha256=FINGERPRINT.tokenizer_sha256)


def saying(text: str) -> Any:
    return lambda request: [Say(text, [1, 2]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]


def compute(text: str, fingerprint: common_pb2.Fingerprint, started_at_ms: int) -> FakeCompute:
    return FakeCompute(saying(text), fingerprint=fingerprint, started_at_ms=started_at_ms)


async def answer(session: aiohttp.ClientSession) -> tuple[int, Any]:
    async with session.post("/v1/completions", json={"prompt": "x"}) as response:
        body = await response.json()
        return response.status, body["choices"][0]["text"] if response.status == 200 else body["error"]["message"]


def ready(fleet: GatewayFleet) -> int:
    return sum(peer.ready for peer in fleet.service.gateway.fleet.peers)


async def test_a_replica_without_a_tokenizer_of_its_model_serves_nothing() -> None:
    replica = FakeCompute(fingerprint=OTHER)
    async with running_fleet(computes=[replica], wait=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        await eventually(lambda: ready(fleet) == 2)
        status, message = await answer(session)
        assert status == 503 and "of the same model" in message
        async with session.get("/health") as response:
            assert response.status == 503
        assert not replica.submitted


async def test_the_model_that_was_rolled_out_last_serves_all_with_its_own_tokenizer() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", OTHER, 2000)
    tokenizers = [FakeTokenizer(), FakeTokenizer(fingerprint=OTHER)]
    async with running_fleet(tokenizers=tokenizers, computes=[old, new]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        assert [await answer(session) for _ in range(4)] == [(200, "new")] * 4
        assert not old.submitted and not tokenizers[0].asked
        assert {hello.HasField("fingerprint") for hello in new.hellos} <= {True, False}


async def test_of_one_tokenizer_s_two_models_a_request_gets_one() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", SAME_TOKENIZER, 2000)
    async with (
        running_fleet(tokenizers=[FakeTokenizer(fingerprint=NO_WEIGHTS)], computes=[old, new]) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        assert [await answer(session) for _ in range(4)] == [(200, "new")] * 4
        await new.kill()
        await eventually(lambda: ready(fleet) == 2)
        assert await answer(session) == (200, "old")


async def test_what_the_old_model_has_begun_ends_there_although_the_new_one_has_come() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", SAME_TOKENIZER, 2000)
    old.flowing.clear()
    async with (
        running_fleet(tokenizers=[FakeTokenizer(fingerprint=NO_WEIGHTS)], computes=[old]) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        begun = asyncio.create_task(answer(session))
        await eventually(lambda: old.submitted)
        await new.start()
        peer = fleet.service.gateway.fleet._computes
        peer._find((old.target, new.target))
        await eventually(lambda: ready(fleet) == 3)
        assert await answer(session) == (200, "new")
        old.flowing.set()
        assert await begun == (200, "old")
        await new.kill()


async def test_a_new_model_that_has_no_room_yet_leaves_the_rest_to_the_old_one() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", SAME_TOKENIZER, 2000)
    async with (
        running_fleet(tokenizers=[FakeTokenizer(fingerprint=NO_WEIGHTS)], computes=[old, new]) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        new.send(compute_pb2.GenerateResponse(load=compute_pb2.ComputeLoad(waiting_requests=9)))
        await eventually(lambda: fleet.service.gateway.fleet.computes[1].waiting == 9)
        assert await answer(session) == (200, "old")
        new.send(compute_pb2.GenerateResponse(load=compute_pb2.ComputeLoad()))
        await eventually(lambda: fleet.service.gateway.fleet.computes[1].waiting == 0)
        assert await answer(session) == (200, "new")


async def test_an_answer_says_which_model_it_is_of() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", SAME_TOKENIZER, 2000)
    async with (
        running_fleet(tokenizers=[FakeTokenizer(fingerprint=NO_WEIGHTS)], computes=[old]) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):

        async def fingerprint() -> str:
            async with session.post("/v1/completions", json={"prompt": "x"}) as response:
                return str((await response.json())["system_fingerprint"])

        first = await fingerprint()
        await new.start()
        fleet.service.gateway.fleet._computes._find((old.target, new.target))
        await eventually(lambda: ready(fleet) == 3)
        assert first.startswith("fp_") and await fingerprint() not in ("", first)
        await new.kill()


async def test_health_and_metrics_show_the_groups() -> None:
    old, new = compute("old", FINGERPRINT, 1000), compute("new", OTHER, 2000)
    async with running_fleet(computes=[old, new]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        async with session.get("/health") as response:
            groups = (await response.json())["groups"]
        assert [(group["tokenizers"], group["computes"], group["complete"]) for group in groups] == [(0, 1, False), (1, 1, True)]
        async with session.get("/metrics") as response:
            metrics = await response.text()
        assert 'triserve_group_ready{group="' in metrics and 'stage="compute"' in metrics
