"""A whole replica over real gRPC on loopback: gateways on one side, samplers on the other, a hashing model inside."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from compute_svc.engine import Engine
from compute_svc.forward_batch import ForwardBatch
from compute_svc.kv.page_store import KvPageStore
from compute_svc.scheduler.base import SchedulerConfig
from compute_svc.service import SERVICE_NAME, ComputeService
from compute_svc.settings import Settings
from tests.fakes.fake_sampler import FakeSampler
from tests.fakes.hash_model import HashModel, hash_kv
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.fingerprint import fingerprint_of
from triserve.v1 import common_pb2, compute_pb2, compute_pb2_grpc, sampler_pb2

WIDTH = 24
TIMEOUT_S = 20.0


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a state that comes by itself."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


class Gateway:
    """A gateway that reads everything into attributes.

    Attributes:
        tokens: Of each request, in order.
        ended: How each attempt ended.
    """

    def __init__(self, port: int) -> None:
        self._channel = open_channel(f"127.0.0.1:{port}")
        self.stub: Any = compute_pb2_grpc.ComputeServiceStub(self._channel)
        self.hello: compute_pb2.GetComputeInfoResponse | None = None
        self.responses: list[compute_pb2.GenerateResponse] = []
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, int] = {}
        self.started: dict[int, compute_pb2.RequestStarted] = {}
        self.ended: dict[int, compute_pb2.RequestEnded] = {}
        self.status: grpc.aio.AioRpcError | None = None
        self._reader: asyncio.Task[None] | None = None

    async def connect(self, fingerprint: common_pb2.Fingerprint, *, reads: bool = True) -> Gateway:
        self.call = self.stub.Generate()
        await self.send(hello=compute_pb2.GatewayHello(gateway_name="test", fingerprint=fingerprint))
        if reads:
            self._reader = asyncio.create_task(self._read())
            await until(lambda: self.hello is not None or self.status is not None)
        return self

    async def send(self, **fields: Any) -> None:
        await self.call.write(compute_pb2.GenerateRequest(**fields))

    async def submit(self, request: int, prompt: Sequence[int], max_tokens: int = 4, **fields: Any) -> None:
        await self.send(submit=[submission(request, prompt, max_tokens, **fields)])

    async def end_of(self, *requests: int) -> list[compute_pb2.RequestEnded]:
        await until(lambda: all(request in self.ended for request in requests))
        return [self.ended[request] for request in requests]

    async def load(self) -> compute_pb2.ComputeLoad:
        info = await self.stub.GetComputeInfo(compute_pb2.GetComputeInfoRequest())
        return info.load

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self._channel.close()

    async def _read(self) -> None:
        try:
            async for response in self.call:
                self._take(response)
        except grpc.aio.AioRpcError as error:
            self.status = error

    def _take(self, response: compute_pb2.GenerateResponse) -> None:
        self.responses.append(response)
        if response.HasField("hello"):
            self.hello = response.hello
        self.started.update({started.request: started for started in response.started})
        for parcel in response.parcels:
            frame = sampler_pb2.DeltaFrame.FromString(parcel)
            for request, first, token, finish in zip(frame.request, frame.first_position, frame.token, frame.finish_reason, strict=True):
                answer = self.tokens.setdefault(request, [])
                assert request not in self.finish, "nothing follows a finish reason"
                answer.append(token)
                assert first >= len(answer) - 1
                if finish:
                    self.finish[request] = finish
        for ended in response.ended:
            assert ended.request not in self.ended
            self.ended[ended.request] = ended


def submission(request: int, prompt: Sequence[int], max_tokens: int = 4, **fields: Any) -> compute_pb2.SubmitRequest:
    sampling = fields.pop("sampling", common_pb2.SamplingParams(temperature=0))
    stopping = common_pb2.StoppingParams(max_tokens=max_tokens, **fields.pop("stopping", {}))
    return compute_pb2.SubmitRequest(request=request, request_id=f"r{request}", token_ids=prompt, sampling=sampling, stopping=stopping, **fields)


class Gate:
    """Wraps a model: forward passes wait while the gate is shut."""

    def __init__(self, model: HashModel) -> None:
        self.model = model
        self.open = threading.Event()
        self.open.set()
        self.error: BaseException | None = None

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        self.open.wait(TIMEOUT_S)
        if self.error is not None:
            raise self.error
        return self.model.forward(batch, kv)


class Replica:
    """A service with one sampler or more."""

    def __init__(self, folder: Path) -> None:
        self.fingerprint = fingerprint_of(folder)
        self.folder = folder
        self.model = HashModel(WIDTH)
        self.gate = Gate(self.model)
        self.samplers: list[FakeSampler] = []
        self.gateways: list[Gateway] = []
        self.engine: Engine | None = None

    async def start(self, *, num_samplers: int = 1, sizes: dict[str, int] | None = None, **settings: Any) -> Replica:
        targets = []
        for _ in range(num_samplers):
            self.samplers.append(FakeSampler(self.fingerprint))
            targets.append(await self.samplers[-1].start())
        self.sizes = {"page_size_tokens": 4, "num_pages": 32, "max_model_len_tokens": 64, "step_budget_tokens": 16}
        self.sizes |= {"max_running_requests": 4, "max_waiting_requests": 4} | (sizes or {})
        self.settings = Settings(listen="127.0.0.1:0", model=self.folder, samplers=",".join(targets), threads=1, **settings)
        self.service = ComputeService(self.settings, self._load)
        await self.service.start()
        await until(lambda: self.engine is not None)
        return self

    async def ready(self) -> Replica:
        async with open_channel(f"127.0.0.1:{self.service.port}") as channel:
            async with asyncio.timeout(TIMEOUT_S):
                while not await is_ready(channel, SERVICE_NAME, timeout_s=1):
                    await asyncio.sleep(0.005)
        return self

    async def is_ready(self) -> bool:
        async with open_channel(f"127.0.0.1:{self.service.port}") as channel:
            return await is_ready(channel, SERVICE_NAME, timeout_s=1)

    async def gateway(self, fingerprint: common_pb2.Fingerprint | None = None, *, reads: bool = True) -> Gateway:
        self.gateways.append(Gateway(self.service.port))
        return await self.gateways[-1].connect(fingerprint or self.fingerprint, reads=reads)

    async def idle(self) -> None:
        """Waits until no request is left, and checks that no page is."""
        gateway = Gateway(self.service.port)
        async with asyncio.timeout(TIMEOUT_S):
            while (load := await gateway.load()).running_requests or load.waiting_requests or load.used_pages:
                await asyncio.sleep(0.005)
        await gateway._channel.close()

    def _load(self, settings: Settings) -> Engine:
        config = SchedulerConfig(**self.sizes)
        kv = hash_kv(config.num_pages, config.page_size_tokens)
        self.engine = Engine(self.gate, kv, config, logits_width=WIDTH, device=torch.device("cpu"))
        return self.engine

    async def stop(self) -> None:
        self.gate.open.set()
        for gateway in self.gateways:
            await gateway.close()
        await self.service.stop()
        for sampler in self.samplers:
            sampler.may_answer.set()
            await sampler.stop()


@pytest.fixture
async def replica(tmp_path: Path) -> AsyncIterator[Replica]:
    """A replica that is not started."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    replica = Replica(tmp_path)
    yield replica
    with contextlib.suppress(AttributeError):
        await replica.stop()


SAMPLED = common_pb2.SamplingParams(temperature=1, top_k=3, seed=1)


async def test_a_greedy_and_a_sampled_request_are_answered(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 5)
    await gateway.submit(2, [4, 5, 6], 5, sampling=SAMPLED)
    ends = await gateway.end_of(1, 2)
    assert [end.outcome for end in ends] == [compute_pb2.REQUEST_OUTCOME_FINISHED] * 2
    # The fake draws the likeliest candidate, so both are the greedy answer.
    assert gateway.tokens == {1: replica.model.greedy_answer([1, 2, 3], 5), 2: replica.model.greedy_answer([4, 5, 6], 5)}
    assert gateway.finish == dict.fromkeys((1, 2), common_pb2.FINISH_REASON_LENGTH)
    assert set(gateway.started) == {1, 2}
    await replica.idle()


async def test_the_hello_says_what_the_replica_is(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    assert gateway.hello is not None
    hello = gateway.hello
    assert hello.fingerprint == replica.fingerprint
    assert (hello.max_model_len_tokens, hello.logits_width, hello.page_size_tokens, hello.num_pages) == (64, WIDTH, 4, 32)
    assert (hello.max_waiting_requests, hello.dtype, hello.device, hello.load.free_pages) == (4, "float32", "cpu", 32)
    sampler_hello = replica.samplers[0].hellos[0]
    assert (sampler_hello.logits_width, sampler_hello.fingerprint) == (WIDTH, replica.fingerprint)


async def test_a_sampler_is_told_all_it_needs(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    whole = replica.model.greedy_answer([1, 2], 4)
    await gateway.submit(7, [1, 2], 4, epoch=3, generated_token_ids=whole[:2], stopping={"stop_strings": ["x"]})
    await gateway.end_of(7)
    frames = replica.samplers[0].frames
    (opening,) = [opening for frame in frames for opening in frame.open]
    assert (opening.gateway_request, opening.epoch, opening.request_id) == (7, 3, "r7")
    assert (list(opening.prompt_token_ids), list(opening.generated_token_ids)) == ([1, 2], whole[:2])
    assert list(opening.stopping.stop_strings) == ["x"]
    assert [frame.frame for frame in frames] == list(range(1, len(frames) + 1))
    assert [position for frame in frames for position in frame.position] == [2, 3]
    assert gateway.tokens[7] == whole[2:]
    assert (gateway.started[7].epoch, gateway.ended[7].epoch) == (3, 3)


async def test_a_stop_by_the_sampler_ends_the_request_and_frees_its_pages(replica: Replica) -> None:
    await (await replica.start()).ready()
    replica.samplers[0].finish_after = 3
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 40)
    (end,) = await gateway.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    assert gateway.tokens[1] == replica.model.greedy_answer([1, 2, 3], 3)
    await replica.idle()


async def test_the_last_parcel_and_the_end_are_one_message(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 1)
    await gateway.end_of(1)
    (last,) = [response for response in gateway.responses if response.ended]
    assert len(last.parcels) == len(last.started) == 1


@pytest.mark.parametrize("stage", ["waiting", "prefilling", "decoding", "awaiting a verdict"])
async def test_a_cancelled_request_ends_and_its_pages_are_free(replica: Replica, stage: str) -> None:
    await (await replica.start(sizes={"max_running_requests": 1})).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    if stage == "waiting":
        await gateway.submit(9, [1], 50)
        await until(lambda: len(gateway.tokens.get(9, [])) > 1)
        sampler.may_answer.clear()
    if stage == "prefilling":
        replica.gate.open.clear()
    if stage == "awaiting a verdict":
        sampler.may_answer.clear()
    await gateway.submit(1, list(range(20)), 40, sampling=SAMPLED if stage == "awaiting a verdict" else common_pb2.SamplingParams(temperature=0))
    if stage == "decoding":
        await until(lambda: len(gateway.tokens.get(1, [])) > 2)
    if stage == "awaiting a verdict":
        await until(lambda: any(frame.request for frame in sampler.frames))
    await gateway.send(cancel=[1, 12345])
    replica.gate.open.set()
    (end,) = await gateway.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_CANCELLED
    sampler.may_answer.set()
    if stage == "waiting":
        await gateway.send(cancel=[9])
    await replica.idle()
    await until(lambda: not sampler.open)


async def test_a_gateway_that_leaves_takes_its_requests_with_it(replica: Replica) -> None:
    await (await replica.start()).ready()
    leaving, staying = await replica.gateway(), await replica.gateway()
    await leaving.submit(1, [1, 2, 3], 60)
    await staying.submit(1, [4, 5, 6], 12)
    await until(lambda: 1 in leaving.tokens)
    await leaving.close()
    await staying.end_of(1)
    assert staying.tokens[1] == replica.model.greedy_answer([4, 5, 6], 12)
    await replica.idle()
    await until(lambda: not replica.samplers[0].open)


async def test_a_gateway_that_ends_its_side_takes_its_requests_with_it(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 50)
    await gateway.call.done_writing()
    assert await gateway.call.code() is grpc.StatusCode.OK
    replica.samplers[0].may_answer.set()
    await replica.idle()


BAD = [
    (dict(token_ids=[]), "token_ids"),
    (dict(token_ids=[WIDTH]), "token_ids"),
    (dict(generated_token_ids=[WIDTH]), "generated_token_ids"),
    (dict(token_ids=[1] * 64), "token_ids"),
    (dict(stopping=common_pb2.StoppingParams(max_tokens=64)), "max_tokens"),
    (dict(system_tokens=4), "system_tokens"),
]


@pytest.mark.parametrize(("fields", "field"), BAD, ids=[field + str(index) for index, (_, field) in enumerate(BAD)])
async def test_a_bad_request_fails_alone_and_by_name(replica: Replica, fields: dict[str, Any], field: str) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    good = submission(1, [1, 2, 3], 4)
    bad = submission(2, [1, 2, 3], 4)
    for name, value in fields.items():
        bad.ClearField(name)  # type: ignore[arg-type]
        getattr(bad, name).extend(value) if isinstance(value, list) else (
            setattr(bad, name, value) if isinstance(value, int) else getattr(bad, name).CopyFrom(value)
        )
    await gateway.send(submit=[bad, good])
    (failed, fine) = await gateway.end_of(2, 1)
    assert (failed.outcome, failed.error.field, failed.error.code) == (compute_pb2.REQUEST_OUTCOME_FAILED, field, 3)
    assert fine.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


async def test_a_number_that_is_under_way_is_refused_and_the_first_goes_on(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.send(submit=[submission(1, [1, 2], 4, epoch=1), submission(1, [1, 2], 4, epoch=2)])
    await until(lambda: 1 in gateway.ended)
    refused = gateway.ended.pop(1)
    assert (refused.epoch, refused.error.field) == (2, "request")
    replica.samplers[0].may_answer.set()
    (end,) = await gateway.end_of(1)
    assert (end.epoch, end.outcome) == (1, compute_pb2.REQUEST_OUTCOME_FINISHED)


async def test_a_full_queue_says_overloaded(replica: Replica) -> None:
    await (await replica.start(sizes={"max_running_requests": 1, "max_waiting_requests": 1})).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    await gateway.send(submit=[submission(request, [1, 2], 2) for request in range(4)])
    replica.gate.open.set()
    ends = await gateway.end_of(0, 1, 2, 3)
    assert [end.error.reason for end in ends].count("OVERLOADED") >= 1
    assert ends[0].outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


async def test_a_deadline_ends_a_request_with_an_error(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2], 40, deadline_ms=50, sampling=SAMPLED)
    await gateway.submit(2, [1, 2], 2, deadline_ms=50)
    ends = await gateway.end_of(1, 2)
    assert [end.error.reason for end in ends] == ["DEADLINE_EXCEEDED"] * 2
    replica.samplers[0].may_answer.set()
    await replica.idle()


@pytest.mark.parametrize("first", [compute_pb2.GenerateRequest(), compute_pb2.GenerateRequest(cancel=[1])], ids=["empty", "no hello"])
async def test_a_stream_without_hello_ends_with_a_status(replica: Replica, first: compute_pb2.GenerateRequest) -> None:
    await (await replica.start()).ready()
    gateway = Gateway(replica.service.port)
    call = gateway.stub.Generate()
    await call.write(first)
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    await gateway._channel.close()


async def test_a_second_hello_ends_the_stream_with_a_status(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await gateway.send(hello=compute_pb2.GatewayHello(fingerprint=replica.fingerprint))
    assert await gateway.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_another_tokenizer_is_refused(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway(common_pb2.Fingerprint(tokenizer_sha256="other"))
    assert await gateway.call.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_without_a_sampler_the_replica_is_not_ready_and_says_so(replica: Replica) -> None:
    await replica.start()
    await replica.samplers[0].stop()
    async with asyncio.timeout(TIMEOUT_S):
        while await replica.is_ready():
            await asyncio.sleep(0.01)
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2], 2)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"


async def test_a_sampler_of_another_model_is_not_used(replica: Replica) -> None:
    replica.fingerprint = common_pb2.Fingerprint(tokenizer_sha256="other")
    await replica.start()
    await until(lambda: bool(replica.samplers[0].hellos))
    assert not await replica.is_ready()


async def test_a_lost_sampler_fails_its_requests_and_comes_back(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    sampler.may_answer.clear()
    await gateway.submit(1, [1, 2], 40, sampling=SAMPLED)
    await gateway.submit(2, [3, 4], 40)
    await until(lambda: any(frame.request for frame in sampler.frames))
    await sampler.stop()
    ends = await gateway.end_of(1, 2)
    assert [end.error.reason for end in ends] == ["UNAVAILABLE"] * 2
    await replica.idle()
    sampler.may_answer.set()
    await sampler.start(replica.settings.samplers[0])
    await replica.ready()
    await gateway.submit(3, [1, 2], 3)
    (end,) = await gateway.end_of(3)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED


async def test_requests_are_spread_over_samplers_and_a_lost_one_harms_only_its_own(replica: Replica) -> None:
    await (await replica.start(num_samplers=2)).ready()
    await until(lambda: all(sampler.hellos for sampler in replica.samplers))
    gateway = await replica.gateway()
    for sampler in replica.samplers:
        sampler.may_answer.clear()
    await gateway.send(submit=[submission(request, [request, 2], 6, sampling=SAMPLED) for request in range(4)])
    await until(lambda: all(sum(len(frame.open) for frame in sampler.frames) == 2 for sampler in replica.samplers))
    mine = [opening.gateway_request for frame in replica.samplers[1].frames for opening in frame.open]
    await replica.samplers[0].stop()
    replica.samplers[1].may_answer.set()
    ends = {end.request: end for end in await gateway.end_of(0, 1, 2, 3)}
    for request, end in ends.items():
        assert end.outcome == (compute_pb2.REQUEST_OUTCOME_FINISHED if request in mine else compute_pb2.REQUEST_OUTCOME_FAILED)
        if request in mine:
            assert gateway.tokens[request] == replica.model.greedy_answer([request, 2], 6)


async def test_a_sampler_that_leaves_frames_unanswered_is_lost(replica: Replica) -> None:
    await (await replica.start(sampler_timeout_s=0.1)).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2], 3)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"
    assert "unanswered" in end.error.message


async def test_a_request_pauses_while_its_sampler_is_behind(replica: Replica) -> None:
    await (await replica.start(max_unanswered_frames=4)).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    sampler.may_answer.clear()
    await gateway.submit(1, [1, 2], 40)
    assert replica.engine is not None
    async with asyncio.timeout(TIMEOUT_S):
        steps = -1
        while (now := (await gateway.load()).steps) != steps or now == 0:
            steps = now
            await asyncio.sleep(0.05)
    assert steps < 20
    assert len(sampler.frames) <= 4
    sampler.may_answer.set()
    await gateway.end_of(1)
    assert gateway.tokens[1] == replica.model.greedy_answer([1, 2], 40)


async def test_a_failure_in_the_sampler_fails_its_request_alone(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].fail_at = 6
    await gateway.send(submit=[submission(1, [1, 2], 20), submission(2, [3, 4], 5)])
    (failed, fine) = await gateway.end_of(1, 2)
    assert (failed.error.reason, failed.error.message) == ("INTERNAL", "the sampler was told to fail")
    assert fine.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


@pytest.mark.parametrize("sampling", [common_pb2.SamplingParams(temperature=0), SAMPLED], ids=["greedy", "sampled"])
async def test_a_sampler_that_never_ends_a_request_does_not_leave_it_hanging(
    replica: Replica, sampling: common_pb2.SamplingParams
) -> None:
    await (await replica.start()).ready()
    replica.samplers[0].ends_requests = False
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2], 3, sampling=sampling)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "INTERNAL"
    await until(lambda: not replica.samplers[0].open)


async def test_a_gateway_that_does_not_read_is_cut_off_and_harms_nobody(replica: Replica) -> None:
    await (await replica.start(max_backlog_bytes=1 << 20, sizes={"max_model_len_tokens": 100_000, "num_pages": 30_000})).ready()
    good, deaf = await replica.gateway(), await replica.gateway(reads=False)
    # Long numbers make large parcels; the transport itself holds some megabytes.
    replica.samplers[0].text_bytes = 400_000
    await deaf.submit(1, [1, 2], 90_000)
    async with asyncio.timeout(TIMEOUT_S):
        while (await good.load()).decode_tokens == 0:
            await asyncio.sleep(0.005)
    await replica.idle()
    replica.samplers[0].text_bytes = 0
    await good.submit(1, [5, 6], 4)
    (end,) = await good.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while await deaf.call.read() is not grpc.aio.EOF:
            continue
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_load_is_told_while_idle(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await until(lambda: sum(response.HasField("load") for response in gateway.responses) >= 2)


async def test_a_step_that_does_not_end_makes_the_replica_not_ready(replica: Replica) -> None:
    await (await replica.start(stall_timeout_s=0.05)).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    await gateway.submit(1, [1, 2], 2)
    async with asyncio.timeout(TIMEOUT_S):
        while await replica.is_ready():
            await asyncio.sleep(0.01)
    replica.gate.open.set()
    await gateway.end_of(1)
    await replica.ready()


async def test_a_failing_model_fails_all_requests_and_the_process(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.gate.open.clear()
    replica.gate.error = RuntimeError("out of order")
    await gateway.send(submit=[submission(1, [1, 2], 2), submission(2, [1, 2], 2)])
    replica.gate.open.set()
    with pytest.raises(RuntimeError, match="out of order"):
        await asyncio.wait_for(replica.service.failed(), TIMEOUT_S)
    ends = await gateway.end_of(1, 2)
    assert [end.error.reason for end in ends] == ["INTERNAL"] * 2
    async with asyncio.timeout(TIMEOUT_S):
        while await replica.is_ready():
            await asyncio.sleep(0.01)


async def test_a_model_that_does_not_load_fails_the_process(replica: Replica) -> None:
    replica.samplers = []
    service = ComputeService(Settings(listen="127.0.0.1:0", model=replica.folder, samplers="127.0.0.1:9", threads=1))
    await service.start()
    with pytest.raises(Exception, match="architecture"):
        await asyncio.wait_for(service.failed(), TIMEOUT_S)
    await service.stop()


async def test_draining_lets_requests_end_and_takes_no_new_ones(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 6)
    await until(lambda: any(frame.request for frame in replica.samplers[0].frames))
    stop = asyncio.create_task(replica.service.stop())
    async with asyncio.timeout(TIMEOUT_S):
        while await replica.is_ready():
            await asyncio.sleep(0.005)
    await gateway.submit(2, [1, 2, 3], 6)
    (refused,) = await gateway.end_of(2)
    assert refused.error.reason == "UNAVAILABLE"
    replica.samplers[0].may_answer.set()
    await asyncio.wait_for(stop, TIMEOUT_S)
    assert gateway.ended[1].outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    assert gateway.tokens[1] == replica.model.greedy_answer([1, 2, 3], 6)


async def test_draining_gives_up_on_requests_that_take_too_long(replica: Replica) -> None:
    await (await replica.start(drain_timeout_s=0.05)).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2, 3], 6, sampling=SAMPLED)
    await until(lambda: any(frame.request for frame in replica.samplers[0].frames))
    await asyncio.wait_for(replica.service.stop(), TIMEOUT_S)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "UNAVAILABLE"
