"""Stages that come, go, disagree and lose things, seen through the gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute, Say, frame
from tests.fakes.fake_tokenizer import FINGERPRINT, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.errors import Internal, Overloaded, Unavailable
from triserve.v1 import common_pb2, compute_pb2

COMPLETION = "/v1/completions"
OTHER = common_pb2.Fingerprint(tokenizer_sha256="ef" * 32)


async def complete(session: aiohttp.ClientSession, **body: Any) -> tuple[int, dict[str, Any]]:
    async with session.post(COMPLETION, json={"prompt": "abc", **body}) as response:
        return response.status, await response.json()


async def events(session: aiohttp.ClientSession, **body: Any) -> list[Any]:
    async with session.post(COMPLETION, json={"prompt": "abc", "stream": True, **body}) as response:
        lines = [line.decode().strip() async for line in response.content if line.strip()]
    return [json.loads(line) if line.startswith("{") else line for line in (line.removeprefix("data: ") for line in lines)]


async def health(session: aiohttp.ClientSession) -> tuple[int, dict[str, Any]]:
    async with session.get("/health") as response:
        return response.status, await response.json()


@pytest.fixture
async def pair() -> AsyncIterator[GatewayFleet]:
    """Two replicas, both holding back."""
    async with running_fleet(computes=[FakeCompute(), FakeCompute()]) as fleet:
        for compute in fleet.computes:
            compute.flowing.clear()
        yield fleet


async def test_health_names_what_is_missing_until_every_stage_is_there() -> None:
    tokenizer, compute = FakeTokenizer(), FakeCompute()
    async with running_fleet(tokenizers=[tokenizer], computes=[compute], wait=False) as fleet, aiohttp.ClientSession(fleet.url) as session:
        await compute.server.health.set_ready(False)
        await eventually(lambda: not any(peer.ready for peer in fleet.service.gateway.fleet.computes))
        status, body = await health(session)
        assert (status, body["missing"][-1]) == (503, "compute")
        status, refusal = await complete(session)
        assert (status, refusal["error"]["type"]) == (503, "service_unavailable_error")
        await compute.server.health.set_ready(True)
        await eventually(lambda: fleet.ready)
        assert (await health(session))[0] == 200
        assert (await complete(session))[0] == 200


async def test_a_replica_that_stops_being_ready_gets_no_new_requests_and_ends_those_it_has(pair: GatewayFleet) -> None:
    first, second = pair.computes
    async with aiohttp.ClientSession(pair.url) as session:
        old = asyncio.create_task(complete(session))
        await eventually(lambda: first.submitted)
        await first.server.health.set_ready(False)
        await eventually(lambda: not pair.service.gateway.fleet.computes[0].ready)
        new = [asyncio.create_task(complete(session)) for _ in range(2)]
        await eventually(lambda: len(second.submitted) == 2)
        first.flowing.set()
        second.flowing.set()
        assert [status for status, _ in await asyncio.gather(old, *new)] == [200] * 3
        assert len(first.submitted) == 1


async def test_a_request_whose_replica_dies_before_the_first_token_is_answered_by_another(pair: GatewayFleet) -> None:
    first, second = pair.computes
    async with aiohttp.ClientSession(pair.url) as session:
        task = asyncio.create_task(complete(session, seed=5))
        await eventually(lambda: first.submitted)
        await first.kill()
        await eventually(lambda: second.submitted)
        assert (first.submitted[0].epoch, second.submitted[0].epoch) == (0, 1)
        assert second.submitted[0].sampling == first.submitted[0].sampling
        second.flowing.set()
        status, body = await task
        assert (status, body["choices"][0]["text"]) == (200, "abc")
        assert body["usage"]["completion_tokens"] == 4


async def test_a_request_waits_for_a_replica_no_longer_than_it_may() -> None:
    async with (
        running_fleet(computes=[FakeCompute(), FakeCompute()], retry_wait_s=0.2) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        for compute in fleet.computes:
            compute.flowing.clear()
        task = asyncio.create_task(complete(session))
        for compute in fleet.computes:
            await eventually(lambda compute=compute: compute.submitted)  # type: ignore[misc]
            await compute.kill()
        status, body = await task
        assert (status, body["error"]["type"]) == (503, "service_unavailable_error")


# Log-probabilities that a sampler held back with their text are lost with it: such an answer is made anew.
@pytest.mark.parametrize(("n", "asked", "kept"), [(1, {}, 2), (3, {}, 2), (2, {"logprobs": 1}, 0)])
async def test_an_answer_of_which_nothing_was_sent_goes_on_elsewhere_from_the_tokens_that_came(
    pair: GatewayFleet, n: int, asked: dict[str, Any], kept: int
) -> None:
    first, second = pair.computes
    async with aiohttp.ClientSession(pair.url) as session:
        task = asyncio.create_task(complete(session, n=n, seed=5, return_token_ids=True, **asked))
        await eventually(lambda: len(first.submitted) + len(second.submitted) == n)
        first.let_through(2)
        compute_peer = pair.service.gateway.fleet.computes[0]
        await eventually(lambda: sum(len(attempt.answer.token_ids) for attempt in compute_peer._attempts.values()) == 2)
        await first.kill()
        second.flowing.set()
        status, body = await task
        assert status == 200
        for choice in body["choices"]:
            assert (choice["text"], choice["token_ids"]) == ("abc", [97, 98, 99, 256])
            assert not asked or choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
        assert body["usage"]["completion_tokens"] == 4 * n
        resumed = [request for request in second.submitted if request.epoch == 1]
        assert sum(len(request.generated_token_ids) for request in resumed) == kept
        assert all(request.token_ids == first.submitted[0].token_ids for request in resumed)


async def test_a_stream_of_which_nothing_was_sent_is_whole_though_its_replica_died(pair: GatewayFleet) -> None:
    first, second = pair.computes
    async with aiohttp.ClientSession(pair.url) as session:
        task = asyncio.create_task(events(session))
        await eventually(lambda: first.submitted)
        await first.kill()
        second.flowing.set()
        said = await task
        assert "".join(event["choices"][0]["text"] for event in said[:-1]) == "abc"
        assert said[-1] == "[DONE]"


async def test_a_request_is_tried_again_so_often_and_no_more() -> None:
    """A replica that takes requests and fails each, as one without a sampler does."""
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.script = lambda request: [Unavailable("no sampler")]
        status, body = await complete(session)
        assert (status, body["error"]["type"]) == (503, "service_unavailable_error")
        assert [request.epoch for request in fleet.compute.submitted] == [0, 1, 2, 3]


async def test_a_full_replicas_request_goes_to_another(pair: GatewayFleet) -> None:
    first, second = pair.computes
    first.script = lambda request: [Overloaded("the queue is full")]
    first.flowing.set()
    second.flowing.set()
    async with aiohttp.ClientSession(pair.url) as session:
        assert (await complete(session))[0] == 200
    assert len(first.submitted) == len(second.submitted) == 1


async def test_a_request_at_fault_itself_is_not_tried_again(pair: GatewayFleet) -> None:
    for compute in pair.computes:
        compute.script = lambda request: [Internal("internal error")]
        compute.flowing.set()
    async with aiohttp.ClientSession(pair.url) as session:
        assert (await complete(session))[0] == 500
    assert sum(len(compute.submitted) for compute in pair.computes) == 1


async def test_a_stream_whose_replica_dies_ends_in_an_error_event_and_new_requests_go_on(pair: GatewayFleet) -> None:
    first, second = pair.computes
    first.let_through(1)
    async with aiohttp.ClientSession(pair.url) as session:
        async with session.post(COMPLETION, json={"prompt": "abc", "stream": True}) as response:
            assert b'"text":"a"' in await response.content.readline()
            await first.kill()
            rest = (await response.content.read()).decode().strip().split("\n\n")
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("service_unavailable_error", "unavailable")
        assert "127.0.0.1" not in error["message"]
        assert not second.submitted
        second.flowing.set()
        assert (await complete(session))[0] == 200


async def test_a_lone_replica_that_dies_has_its_requests_again_when_it_is_back() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        compute = fleet.compute
        compute.flowing.clear()
        task = asyncio.create_task(complete(session))
        await eventually(lambda: compute.submitted)
        await compute.kill()
        await eventually(lambda: not fleet.ready)
        assert (await health(session))[0] == 503
        assert (await complete(session))[0] == 503, "what comes while there is no replica is refused at once"
        again = FakeCompute(listen=compute.target)
        await again.start()
        status, body = await task
        assert (status, body["choices"][0]["text"]) == (200, "abc")
        assert [request.epoch for request in again.submitted] == [1]
        assert (await complete(session))[0] == 200
        assert (await health(session))[0] == 200
        await again.kill()


async def test_a_tokenizer_that_dies_hands_its_request_to_another() -> None:
    async with running_fleet(tokenizers=[FakeTokenizer(), FakeTokenizer()]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        first, second = fleet.tokenizers
        first.flowing.clear()
        task = asyncio.create_task(complete(session))
        await eventually(lambda: first.asked)
        await first.kill()
        assert (await task)[0] == 200
        assert len(second.asked) == 1


async def test_tokenizers_that_are_equally_busy_take_turns() -> None:
    tokenizers = [FakeTokenizer() for _ in range(3)]
    async with running_fleet(tokenizers=tokenizers) as fleet, aiohttp.ClientSession(fleet.url) as session:
        await eventually(lambda: all(peer.ready for peer in fleet.service.gateway.fleet.tokenizers))
        for _ in range(6):
            assert (await complete(session))[0] == 200
        assert [len(tokenizer.asked) for tokenizer in tokenizers] == [2, 2, 2]


async def test_a_lone_tokenizer_that_dies_has_its_requests_again_when_it_is_back() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.tokenizer.flowing.clear()
        task = asyncio.create_task(complete(session))
        await eventually(lambda: fleet.tokenizer.asked)
        await fleet.tokenizer.kill()
        again = FakeTokenizer(listen=fleet.tokenizer.target)
        await again.start()
        assert (await task)[0] == 200
        await again.kill()


async def test_without_a_seed_equal_prompts_have_seeds_of_their_own_and_with_one_each_has_the_clients() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        for more, num_seeds in (({}, 8), ({"seed": 7}, 2)):
            fleet.compute.submitted.clear()
            assert (await complete(session, prompt=["x"] * 4, n=2, **more))[0] == 200
            assert len({request.sampling.seed for request in fleet.compute.submitted}) == num_seeds


async def test_compute_is_told_who_the_gateway_is() -> None:
    async with running_fleet() as fleet:
        assert fleet.compute.hellos[0].fingerprint == FINGERPRINT
        assert fleet.compute.hellos[0].gateway_name.startswith("gateway ")


def send(fleet: GatewayFleet, parcel: bytes) -> None:
    fleet.compute.send(compute_pb2.GenerateResponse(parcels=[parcel]))


STOP = common_pb2.FINISH_REASON_STOP


async def test_deltas_that_come_twice_or_of_another_attempt_are_dropped() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        task = asyncio.create_task(events(session))
        await eventually(lambda: fleet.compute.submitted)
        send(fleet, frame(1, 0, 0, Say("one ", [1])))
        send(fleet, frame(1, 7, 1, Say("STALE", [9])))
        send(fleet, frame(99, 0, 1, Say("STRANGER", [9])))
        send(fleet, frame(1, 0, 0, Say("one ", [1])))
        send(fleet, frame(1, 0, 1, Say("two", [2, 3], STOP)))
        send(fleet, frame(1, 0, 3, Say("AFTER", [4])))
        text = "".join(event["choices"][0]["text"] for event in (await task)[:-1])
        assert text == "one two"
        async with session.get("/metrics") as response:
            assert "triserve_stale_deltas_total 2.0" in await response.text()


async def test_a_lost_delta_is_an_error_and_cancels_the_attempt() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        task = asyncio.create_task(events(session))
        await eventually(lambda: fleet.compute.submitted)
        send(fleet, frame(1, 0, 0, Say("one ", [1])))
        send(fleet, frame(1, 0, 2, Say("three", [3])))
        last = (await task)[-1]
        assert last["error"]["code"] == "internal_error"
        await eventually(lambda: fleet.compute.cancelled == [1])


async def test_an_attempt_that_ends_without_a_finish_reason_is_an_error() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.script = lambda request: [Say("cut", [1])]
        assert (await events(session))[-1]["error"]["code"] == "internal_error"


async def test_a_frame_that_makes_no_sense_costs_the_stream_and_not_the_gateway() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        task = asyncio.create_task(complete(session))
        await eventually(lambda: fleet.compute.submitted)
        send(fleet, b"\xff\xff\xff")
        fleet.compute.flowing.set()
        assert (await task)[0] == 200
        await eventually(lambda: fleet.ready, "the replica is connected again")
        assert (await complete(session))[0] == 200


async def test_metrics_tell_of_requests_peers_and_pages() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        load = compute_pb2.ComputeLoad(running_requests=3, waiting_requests=2, used_pages=11, cached_pages=5, free_pages=84, steps=9)
        fleet.compute.send(compute_pb2.GenerateResponse(load=load))
        await eventually(lambda: fleet.service.gateway.fleet.computes[0].load == load)
        await complete(session)
        await events(session)
        async with session.get("/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            text = await response.text()
        peer = fleet.compute.target
        for line in (
            "triserve_active_requests 0.0",
            "triserve_body_bytes 0.0",
            f'triserve_peer_used_pages{{peer="{peer}"}} 11.0',
            f'triserve_peer_waiting_requests{{peer="{peer}"}} 2.0',
            f'triserve_peer_steps_total{{peer="{peer}"}} 9.0',
            f'triserve_peer_ready{{peer="{peer}",stage="compute"}} 1.0',
            'triserve_requests_total{outcome="ok",route="completions"} 2.0',
            "triserve_completion_tokens_total 8.0",
            "triserve_time_to_first_token_seconds_count 2.0",
            "triserve_queue_seconds_count 2.0",
            "triserve_inter_token_latency_seconds_count",
            "triserve_asyncio_tasks ",
        ):
            assert line in text, line
