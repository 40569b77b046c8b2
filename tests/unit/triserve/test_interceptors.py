"""Bytes that are no message: every kind of RPC ends with a status that blames the caller and names no class of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from triserve.rpc.channel import open_channel
from triserve.rpc.server import ServiceServer
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

GARBAGE = b"\xff\xff\xff\xff"
PARTED = sampler_pb2.SampleRequest(frame=1, token=[1, 2, 3]).SerializeToString()[:-1]


class _Servicer(sampler_pb2_grpc.SamplerServiceServicer):
    async def GetSamplerInfo(self, request: Any, context: Any) -> sampler_pb2.GetSamplerInfoResponse:
        return sampler_pb2.GetSamplerInfoResponse()

    async def Sample(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[sampler_pb2.SampleResponse]:
        async for message in request_iterator:
            yield sampler_pb2.SampleResponse(frame=message.frame)


@pytest.fixture
async def channel() -> AsyncIterator[Any]:
    server = ServiceServer(
        ["triserve.v1.SamplerService"], lambda s: sampler_pb2_grpc.add_SamplerServiceServicer_to_server(_Servicer(), s), "127.0.0.1:0"
    )
    await server.start()
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop(0)


def _require_blame(code: grpc.StatusCode, details: str | None) -> None:
    assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "the request's bytes are no message of this method")


@pytest.mark.parametrize("method", ["/triserve.v1.SamplerService/GetSamplerInfo", "/grpc.health.v1.Health/Check"])
async def test_garbage_in_a_single_request_is_the_callers_fault(channel: Any, method: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(method)(GARBAGE)
    _require_blame(caught.value.code(), caught.value.details())


async def test_garbage_in_a_request_for_a_stream_is_the_callers_fault(channel: Any) -> None:
    call = channel.unary_stream("/grpc.health.v1.Health/Watch")(GARBAGE)
    _require_blame(await call.code(), await call.details())


@pytest.mark.parametrize("garbage", [GARBAGE, PARTED], ids=["garbage", "cut short"])
@pytest.mark.parametrize("method", ["/triserve.v1.SamplerService/Sample", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])
async def test_garbage_on_a_stream_is_the_callers_fault(channel: Any, method: str, garbage: bytes) -> None:
    call = channel.stream_stream(method)()
    await call.write(garbage if "triserve" in method else GARBAGE)
    _require_blame(await call.code(), await call.details())


async def test_what_came_before_garbage_is_answered(channel: Any) -> None:
    call = channel.stream_stream("/triserve.v1.SamplerService/Sample")()
    await call.write(sampler_pb2.SampleRequest(frame=7).SerializeToString())
    assert sampler_pb2.SampleResponse.FromString(await call.read()).frame == 7
    await call.write(GARBAGE)
    _require_blame(await call.code(), await call.details())
