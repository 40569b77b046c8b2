"""A real sampler behind a real gRPC server."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from sampler_svc.service import SERVICE_NAME, SamplerService
from sampler_svc.settings import Settings
from tests.fakes.sampler_tokenizers import byte_tokenizer
from tests.ports import free_port
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.errors import FingerprintMismatch, InvalidRequest, ServiceError, Unavailable, from_proto, from_rpc_error
from triserve.rpc.fingerprint import fingerprint_of
from triserve.v1 import common_pb2, sampler_pb2, sampler_pb2_grpc

WIDTH, EOS = 257, 256
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer whose ids 0 to 255 are bytes and whose 256 ends a text."""
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return tmp_path


StartService = Callable[..., Awaitable[SamplerService]]


@pytest.fixture
async def start(model: Path) -> AsyncIterator[StartService]:
    """Starts samplers, with the settings given, and stops them in the end."""
    running: list[SamplerService] = []

    async def start_one(**settings: Any) -> SamplerService:
        given = {"listen": "127.0.0.1:0", "model": model, "drain_timeout_s": 0.0} | settings
        service = SamplerService(Settings.model_validate(given))
        await service.start()
        running.append(service)
        return service

    yield start_one
    for service in running:
        await service.stop()


class Replica:
    """A compute replica's side of a stream."""

    def __init__(self, service: SamplerService, model: Path) -> None:
        self.channel = open_channel(f"127.0.0.1:{service.port}")
        self.stub = sampler_pb2_grpc.SamplerServiceStub(self.channel)
        self.call = self.stub.Sample()
        self.model = model
        self.frame = 0

    async def __aenter__(self) -> Replica:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.call.cancel()
        await self.channel.close()

    async def greet(self, **fields: Any) -> sampler_pb2.SampleResponse:
        """Sends the hello and reads the sampler's."""
        hello: dict[str, Any] = {"compute_name": "c", "fingerprint": fingerprint_of(self.model), "logits_width": WIDTH} | fields
        await self.call.write(sampler_pb2.SampleRequest(hello=sampler_pb2.ComputeHello(**hello)))
        return await self.read()

    async def send(self, **columns: Any) -> None:
        """Sends the next frame."""
        self.frame += 1
        await self.call.write(sampler_pb2.SampleRequest(**{"frame": self.frame, **columns}))

    async def read(self) -> sampler_pb2.SampleResponse:
        """The next response.

        Raises:
            ServiceError: the stream ended with it.
        """
        try:
            response = await self.call.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, peer="sampler") from error
        assert isinstance(response, sampler_pb2.SampleResponse), "the stream ended"
        return response

    async def answers(self, frame: int) -> list[sampler_pb2.SampleResponse]:
        """Responses up to the one that acknowledges a frame."""
        responses = [await self.read()]
        while responses[-1].frame < frame:
            responses.append(await self.read())
        return responses

    async def open_requests(self) -> int:
        """What the sampler says it holds."""
        info = await self.stub.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
        return int(info.open_requests)


def opening(request: int, *, sampling: common_pb2.SamplingParams | None = None, **stopping: Any) -> sampler_pb2.OpenRequest:
    fields: dict[str, Any] = {"max_tokens": 50, "stop_token_ids": [EOS]} | stopping
    return sampler_pb2.OpenRequest(
        request=request,
        gateway=1,
        gateway_request=100 + request,
        request_id=f"r-{request}",
        prompt_token_ids=[ord("?")],
        sampling=sampling or common_pb2.SamplingParams(temperature=0),
        stopping=common_pb2.StoppingParams(**fields),
    )


def drawn(rows: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
    """Columns of rows with one token: request, position, token."""
    return {
        "request": [request for request, _, _ in rows],
        "position": [position for _, position, _ in rows],
        "token": [token for _, _, token in rows],
    }


def row_logits(logits: dict[int, float], width: int = WIDTH) -> list[sampler_pb2.RowLogits]:
    """The logits of row 0; those not given are impossible."""
    return [sampler_pb2.RowLogits(row=0, logits=struct.pack(f"<{width}f", *(logits.get(token, -math.inf) for token in range(width))))]


def undrawn(request: int, position: int, logits: dict[int, float], width: int = WIDTH) -> dict[str, Any]:
    """Columns of one row that the sampler draws."""
    return {"request": [request], "position": [position], "num_tokens": [0], "logits": row_logits(logits, width)}


def delta_frames(responses: Sequence[sampler_pb2.SampleResponse]) -> list[sampler_pb2.DeltaFrame]:
    return [sampler_pb2.DeltaFrame.FromString(parcel.delta_frame) for response in responses for parcel in response.parcels]


async def test_a_sampler_says_what_it_is_and_is_ready_at_once(start: StartService, model: Path) -> None:
    service = await start()
    async with Replica(service, model) as replica:
        assert await is_ready(replica.channel, SERVICE_NAME, timeout_s=5)
        hello = await replica.greet()
        assert hello.hello.fingerprint == fingerprint_of(model)
        assert hello.frame == 0


async def test_a_request_goes_from_open_to_finished(start: StartService, model: Path) -> None:
    async with Replica(await start(), model) as replica:
        await replica.greet()
        await replica.send(open=[opening(7)], **drawn([(7, 0, ord("h"))]))
        (first,) = await replica.answers(1)
        assert list(first.request) == []
        await replica.send(**undrawn(7, 1, {ord("i"): 2.0, ord("o"): 1.0}))
        (second,) = await replica.answers(2)
        assert (list(second.request), list(second.position), list(second.token)) == ([7], [1], [ord("i")])
        assert await replica.open_requests() == 1
        await replica.send(**drawn([(7, 2, EOS)]))
        (third,) = await replica.answers(3)
        assert list(third.finished) == [7]
        assert not any(len(response.num_tokens) for response in (first, second, third)), "one each"
        frames = delta_frames([first, second, third])
        assert [list(frame.text) for frame in frames] == [["h"], ["i"], [""]]
        assert [list(frame.request) for frame in frames] == [[107]] * 3
        assert [list(frame.first_position) for frame in frames] == [[0], [1], [2]]
        assert list(frames[2].finish_reason) == [common_pb2.FINISH_REASON_STOP]
        assert await replica.open_requests() == 0


async def test_audits_are_counted_over_all_streams(start: StartService, model: Path) -> None:
    service = await start()
    async with Replica(service, model) as one, Replica(service, model) as other:
        for replica, logits in ((one, {65: 1.0, 66: 0.0}), (other, {65: 0.0, 66: 1.0})):
            await replica.greet()
            await replica.send(open=[opening(1)], **drawn([(1, 0, 65)]), logits=row_logits(logits))
            (response,) = await replica.answers(1)
            assert [list(frame.token) for frame in delta_frames([response])] == [[65]]
            assert list(response.request) == [], "compute has drawn it"
        info = await one.stub.GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
        assert (info.audited_rows, info.audit_disagreements) == (2, 1)


async def test_frames_that_wait_are_answered_together_and_each_is_acknowledged(start: StartService, model: Path) -> None:
    async with Replica(await start(max_queued_frames=8), model) as replica:
        await replica.greet()
        text = "all the king's horses and all the king's men " * 4
        await replica.send(open=[opening(1, max_tokens=len(text))])
        for position, character in enumerate(text):
            await replica.send(**drawn([(1, position, ord(character))]))
        responses = await replica.answers(replica.frame)
        assert [response.frame for response in responses] == sorted({response.frame for response in responses})
        frames = delta_frames(responses)
        assert "".join(part for frame in frames for part in frame.text) == text
        assert [token for frame in frames for token in frame.token] == [*text.encode()]
        assert list(frames[-1].finish_reason) == [common_pb2.FINISH_REASON_LENGTH]


async def test_a_bad_request_is_answered_by_a_failure_that_names_the_field(start: StartService, model: Path) -> None:
    async with Replica(await start(), model) as replica:
        await replica.greet()
        await replica.send(open=[opening(1, sampling=common_pb2.SamplingParams(top_p=1.5, seed=1)), opening(2)], **drawn([(2, 0, 65)]))
        (response,) = await replica.answers(1)
        (failure,) = response.failed
        assert failure.request == 1
        error = from_proto(failure.error)
        assert (type(error), error.field) == (InvalidRequest, "top_p")
        assert [list(frame.text) for frame in delta_frames([response])] == [["A"]]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"fingerprint": common_pb2.Fingerprint(tokenizer_sha256="0" * 64)}, FingerprintMismatch),
        ({"logits_width": 0}, InvalidRequest),
        ({"logits_width": 2**32 - 1}, InvalidRequest),
    ],
    ids=["fingerprint", "no logits", "too many logits"],
)
async def test_a_replica_that_does_not_fit_is_refused(start: StartService, model: Path, fields: dict[str, Any], error: type) -> None:
    async with Replica(await start(), model) as replica:
        with pytest.raises(error):
            await replica.greet(**fields)


async def test_a_stream_begins_with_a_hello(start: StartService, model: Path) -> None:
    service = await start()
    async with Replica(service, model) as replica:
        await replica.send()
        with pytest.raises(InvalidRequest, match="hello"):
            await replica.read()
    async with Replica(service, model) as replica:
        await replica.call.done_writing()
        with pytest.raises(InvalidRequest, match="hello"):
            await replica.read()


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        ({"frame": 5}, "frame"),
        (drawn([(1, 1, WIDTH)]), "token"),
        (drawn([(1, 1, 65)]) | {"position": []}, "position"),
        (undrawn(1, 1, {5: 0.0}, WIDTH - 1), "logits"),
        (undrawn(1, 1, {5: 0.0}) | {"logits": []}, "logits"),
        ({"open": [opening(1)]}, "open"),
    ],
    ids=["gap", "token", "column", "short row", "no row", "open twice"],
)
async def test_a_malformed_frame_ends_its_stream_and_no_other(
    start: StartService, model: Path, columns: dict[str, Any], field: str
) -> None:
    service = await start()
    async with Replica(service, model) as good, Replica(service, model) as bad:
        for replica in (good, bad):
            await replica.greet()
            await replica.send(open=[opening(1)], **drawn([(1, 0, 65)]))
        assert len(delta_frames(await bad.answers(1))) == 1, "what came before is answered"
        await bad.send(**columns)
        with pytest.raises(InvalidRequest) as caught:
            await bad.read()
        assert caught.value.field == field
        await good.send(**drawn([(1, 1, 66)]))
        assert [list(frame.text) for frame in delta_frames(await good.answers(2))] == [["A"], ["B"]]
        assert await good.open_requests() == 1


async def test_a_replica_that_goes_frees_its_requests(start: StartService, model: Path) -> None:
    service = await start()
    async with Replica(service, model) as watcher:
        async with Replica(service, model) as replica:
            await replica.greet()
            await replica.send(open=[opening(1), opening(2)])
            await replica.answers(1)
            assert await watcher.open_requests() == 2
        await wait_until_async(watcher.open_requests, 0)


async def wait_until_async(ask: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Asks another process or task until it answers as wanted."""
    async with asyncio.timeout(60):
        while await ask() != wanted:  # noqa: ASYNC110 - the state is elsewhere and has no event
            await asyncio.sleep(0)


async def test_a_replica_that_half_closes_is_answered_to_the_last_frame(start: StartService, model: Path) -> None:
    async with Replica(await start(), model) as replica:
        await replica.greet()
        await replica.send(open=[opening(1)], **drawn([(1, 0, 65)]))
        await replica.call.done_writing()
        assert len(delta_frames(await replica.answers(1))) == 1
        assert await replica.call.read() == grpc.aio.EOF
        assert await replica.call.code() is grpc.StatusCode.OK
        await wait_until_async(replica.open_requests, 0)


async def test_a_leaving_sampler_ends_what_it_has_and_takes_nothing_new(start: StartService, model: Path) -> None:
    service = await start(drain_timeout_s=60.0)
    async with Replica(service, model) as replica:
        await replica.greet()
        await replica.send(open=[opening(1)], **drawn([(1, 0, 65)]))
        await replica.answers(1)
        leaving = asyncio.create_task(service.stop())

        async def ready() -> int:
            return int(await is_ready(replica.channel, SERVICE_NAME, timeout_s=5))

        await wait_until_async(ready, 0)
        # Sent before the replica could hear of it, it is taken; what comes later is not.
        await replica.send(open=[opening(2)], **drawn([(1, 1, 66)]))
        (response,) = await replica.answers(2)
        assert not response.failed and len(delta_frames([response])) == 1
        frame, opened = 2, [1, 2]
        while not response.failed:
            await asyncio.sleep(0.02)
            frame, number = frame + 1, opened[-1] + 1
            await replica.send(open=[opening(number)])
            (response,) = await replica.answers(frame)
            opened.append(number)
        assert [(failure.request, failure.error.reason) for failure in response.failed] == [(opened.pop(), "UNAVAILABLE")]
        await replica.send(**drawn([(number, 2 if number == 1 else 0, EOS) for number in opened]))
        (last,) = await replica.answers(frame + 1)
        assert list(last.finished) == opened
        assert await replica.call.read() == grpc.aio.EOF
        assert await replica.call.code() is grpc.StatusCode.OK
        await leaving


async def test_requests_that_outlast_the_drain_end_in_an_error(start: StartService, model: Path) -> None:
    service = await start(drain_timeout_s=0.0)
    async with Replica(service, model) as replica:
        await replica.greet()
        await replica.send(open=[opening(1)])
        await replica.answers(1)
        leaving = asyncio.create_task(service.stop())
        with pytest.raises(Unavailable):
            await replica.read()
        await leaving


async def test_an_error_in_the_middle_of_waiting_frames_is_told_after_the_answers(start: StartService, model: Path) -> None:
    async with Replica(await start(), model) as replica:
        await replica.greet()
        await replica.send(open=[opening(1)], **drawn([(1, 0, 65)]))
        await replica.send(**drawn([(1, 1, 66)]))
        await replica.send(**drawn([(1, 2, WIDTH)]))
        texts: list[str] = []
        with pytest.raises(ServiceError) as caught:
            while True:
                texts += [part for frame in delta_frames([await replica.read()]) for part in frame.text]
        assert "".join(texts) == "AB"
        assert caught.value.field == "token"


async def test_the_process_is_small_and_leaves_on_sigterm(model: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "SAMPLER_MODEL": str(model),
        "SAMPLER_LISTEN": address,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos"))),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "sampler_svc", env=environment, cwd=ROOT)
    try:
        async with open_channel(address) as channel, asyncio.timeout(30):
            while not await is_ready(channel, SERVICE_NAME, timeout_s=5):
                assert process.returncode is None
                await asyncio.sleep(0.02)
            assert psutil.Process(process.pid).memory_info().rss < 150 * 1024 * 1024
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
