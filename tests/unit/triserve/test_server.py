"""The shared server: health, typed errors, reflection, settings that name what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.errors import InvalidRequest, Overloaded, Unavailable, from_rpc_error
from triserve.rpc.server import ServiceServer, load_settings
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

SERVICE = "triserve.v1.SamplerService"


class Servicer(sampler_pb2_grpc.SamplerServiceServicer):
    """Fails in every way a handler can."""

    def __init__(self) -> None:
        self.error: Exception = Overloaded("queue has 8 requests, the limit is 8", field="queue")

    async def GetSamplerInfo(self, request: Any, context: Any) -> sampler_pb2.GetSamplerInfoResponse:
        raise self.error

    async def Sample(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[sampler_pb2.SampleResponse]:
        yield sampler_pb2.SampleResponse(frame=1)
        raise self.error


@pytest.fixture
async def served() -> AsyncIterator[tuple[ServiceServer, Servicer, grpc.aio.Channel]]:
    servicer = Servicer()
    server = ServiceServer([SERVICE], lambda s: sampler_pb2_grpc.add_SamplerServiceServicer_to_server(servicer, s), "127.0.0.1:0")
    await server.start()
    channel = open_channel(f"127.0.0.1:{server.port}")
    yield server, servicer, channel
    await channel.close()
    await server.stop(0)


async def test_a_server_is_alive_before_it_is_ready(served: tuple[ServiceServer, Servicer, grpc.aio.Channel]) -> None:
    server, _, channel = served
    assert await is_ready(channel, "", timeout_s=5)
    assert not await is_ready(channel, SERVICE, timeout_s=5)
    await server.health.set_ready(True)
    assert await is_ready(channel, SERVICE, timeout_s=5)


async def test_a_peer_that_is_not_there_is_not_ready() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        assert not await is_ready(channel, "", timeout_s=1)


async def test_a_typed_error_reaches_the_caller_whole(served: tuple[ServiceServer, Servicer, grpc.aio.Channel]) -> None:
    _, _, channel = served
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(caught.value, peer="sampler")
    assert type(error) is Overloaded
    assert (error.message, error.field) == ("queue has 8 requests, the limit is 8", "queue")


async def test_an_unexpected_error_says_nothing_of_what_it_was(
    served: tuple[ServiceServer, Servicer, grpc.aio.Channel], caplog: pytest.LogCaptureFixture
) -> None:
    _, servicer, channel = served
    servicer.error = RuntimeError("secret path")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")
    assert "secret path" in caplog.text


async def test_a_stream_that_has_begun_still_ends_in_its_error(served: tuple[ServiceServer, Servicer, grpc.aio.Channel]) -> None:
    _, servicer, channel = served
    servicer.error = InvalidRequest("frame is out of order", field="frame")
    call = sampler_pb2_grpc.SamplerServiceStub(channel).Sample(_no_requests())
    frames = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for response in call:
            frames.append(response.frame)
    assert frames == [1]
    assert type(from_rpc_error(caught.value, peer="sampler")) is InvalidRequest


async def _no_requests() -> AsyncIterator[sampler_pb2.SampleRequest]:
    await asyncio.Event().wait()
    yield sampler_pb2.SampleRequest()


async def test_an_unreachable_peer_is_unavailable_by_name() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest(), timeout=20)
    error = from_rpc_error(caught.value, peer="sampler 127.0.0.1:1")
    assert type(error) is Unavailable
    assert "sampler 127.0.0.1:1" in error.message


class Settings(BaseSettings):
    """One bounded field."""

    model_config = SettingsConfigDict(env_prefix="DEMO_", frozen=True)
    page_size_tokens: int = Field(16, ge=1, description="Tokens per page.")


def test_a_bad_setting_ends_the_process_naming_variable_and_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEMO_PAGE_SIZE_TOKENS", "0")
    with pytest.raises(SystemExit) as caught:
        load_settings(Settings)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "DEMO_PAGE_SIZE_TOKENS='0'" in message
    assert "greater than or equal to 1" in message


class _Secretive(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SECRETIVE_")

    password: SecretStr | None = Field(None, min_length=16)
    size: int = Field(1, le=4)

    @model_validator(mode="after")
    def _fits(self) -> _Secretive:
        if self.size == 3:
            raise ValueError("size 3 needs no password")
        return self


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SECRETIVE_PASSWORD": "hunter2"}, "SECRETIVE_PASSWORD: "),
        ({"SECRETIVE_PASSWORD": "hunter2-hunter2-hunter2", "SECRETIVE_SIZE": "3"}, "size 3 needs no password"),
        ({"SECRETIVE_PASSWORD": "hunter2-hunter2-hunter2", "SECRETIVE_SIZE": "9"}, "SECRETIVE_SIZE='9'"),
    ],
)
def test_what_is_said_of_settings_that_are_wrong_has_no_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variables: dict[str, str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        load_settings(_Secretive)
    said = capsys.readouterr().err
    assert words in said and "hunter2" not in said
