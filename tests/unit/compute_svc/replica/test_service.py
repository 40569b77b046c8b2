"""A replica's life: ready or not, failing, draining."""

from __future__ import annotations

import asyncio
import itertools

import grpc
import pytest

from compute_svc.engine.engine import MAX_FAILED_STEPS
from compute_svc.replica.engine_client import EngineFailed, EngineLost
from compute_svc.replica.service import ComputeService
from compute_svc.settings import Settings
from tests.fakes.compute_replica import SAMPLED, TIMEOUT_S, Gateway, Replica, submission, until
from triserve.v1 import common_pb2, compute_pb2


async def test_a_greedy_and_a_sampled_request_are_answered(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 5)
    await gateway.submit(2, [4, 5, 6], 5, sampling=SAMPLED)
    ends = await gateway.end_of(1, 2)
    assert [end.outcome for end in ends] == [compute_pb2.REQUEST_OUTCOME_FINISHED] * 2
    # The fake draws the likeliest token, so both are the greedy answer.
    assert gateway.tokens == {1: replica.model.greedy_answer([1, 2, 3], 5), 2: replica.model.greedy_answer([4, 5, 6], 5)}
    assert gateway.finish == dict.fromkeys((1, 2), common_pb2.FINISH_REASON_LENGTH)
    assert set(gateway.started) == {1, 2}
    await replica.idle()


async def test_load_is_told_while_idle(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await until(lambda: sum(response.HasField("load") for response in gateway.responses) >= 2)


async def test_without_a_sampler_the_replica_is_not_ready_and_says_so(replica: Replica) -> None:
    await replica.start()
    await replica.samplers[0].stop()
    await until(replica.is_not_ready)
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2], 2)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"


async def test_a_step_that_does_not_end_makes_the_replica_not_ready(replica: Replica) -> None:
    await (await replica.start(stall_timeout_s=0.05)).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    await gateway.submit(1, [1, 2], 2)
    await until(replica.is_not_ready)
    replica.gate.open.set()
    await gateway.end_of(1)
    await replica.ready()


async def test_a_step_longer_than_any_request_may_take_ends_the_process_and_its_requests(replica: Replica) -> None:
    await (await replica.start(step_timeout_s=0.5)).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    await gateway.submit(1, [1, 2], 2)
    with pytest.raises(EngineLost, match=r"^the engine has been in one step for 0.5 s and was killed$"):
        await asyncio.wait_for(replica.running.failed(), TIMEOUT_S)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"
    replica.gate.open.set()


async def test_a_model_that_fails_every_step_fails_each_request_and_at_last_the_process(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.gate.error = RuntimeError("out of order")
    for number in range(1, MAX_FAILED_STEPS):
        await gateway.submit(number, [1, 2], 2)
        (end,) = await gateway.end_of(number)
        assert end.error.reason == "INTERNAL"
    replica.gate.open.clear()
    await gateway.send(submit=[submission(100, [1, 2], 2), submission(101, [1, 2], 2)])
    replica.gate.open.set()
    with pytest.raises(EngineFailed, match="RuntimeError: out of order"):
        await asyncio.wait_for(replica.running.failed(), TIMEOUT_S)
    ends = await gateway.end_of(100, 101)
    assert [end.error.reason for end in ends] == ["INTERNAL"] * 2
    await until(replica.is_not_ready)


async def test_a_step_that_fails_once_leaves_the_replica_ready(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.gate.error = MemoryError("a prompt is too large")
    await gateway.submit(1, [1, 2], 2)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "INTERNAL"
    replica.gate.error = None
    await gateway.submit(2, [1, 2, 3], 5)
    await gateway.end_of(2)
    assert gateway.tokens[2] == replica.model.greedy_answer([1, 2, 3], 5)
    await replica.ready()


@pytest.mark.slow
async def test_a_model_that_does_not_load_fails_the_process(replica: Replica) -> None:
    settings = Settings.model_validate({"listen": "127.0.0.1:0", "model": replica.folder, "threads": 1})
    replica.service = ComputeService(settings)
    await replica.service.start()
    with pytest.raises(EngineFailed, match="names no architecture"):
        await asyncio.wait_for(replica.service.failed(), TIMEOUT_S)


async def test_gateways_are_told_to_come_back_while_the_model_loads(replica: Replica) -> None:
    replica.may_load.clear()
    await replica.start_loading()
    gateway = Gateway(replica.port)
    call = gateway.stub.Generate()
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError, match="loaded"):
        await gateway.load()
    await gateway.channel.close()
    assert await replica.is_not_ready()
    replica.may_load.set()
    await replica.ready()


async def test_draining_lets_requests_end_and_takes_no_new_ones(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 6)
    await until(lambda: any(frame.request for frame in replica.samplers[0].frames))
    stop = asyncio.create_task(replica.running.stop())
    await until(replica.is_not_ready)
    # Sent before the gateway could hear of it, it is taken; what comes later is not.
    await gateway.submit(2, [1, 2, 3], 6)
    numbers = itertools.count(3)
    while len(gateway.ended) == 0:
        await gateway.submit(next(numbers), [1, 2, 3], 6)
        await asyncio.sleep(0.02)
    assert {ended.error.reason for ended in gateway.ended.values()} == {"UNAVAILABLE"}
    assert 2 not in gateway.ended
    replica.samplers[0].may_answer.set()
    await asyncio.wait_for(stop, TIMEOUT_S)
    for number in (1, 2):
        assert gateway.ended[number].outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
        assert gateway.tokens[number] == replica.model.greedy_answer([1, 2, 3], 6)


async def test_draining_gives_up_on_requests_that_take_too_long(replica: Replica) -> None:
    await (await replica.start(drain_timeout_s=0.05)).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 6, sampling=SAMPLED)
    await until(lambda: any(frame.request for frame in replica.samplers[0].frames))
    await asyncio.wait_for(replica.running.stop(), TIMEOUT_S)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"
