"""What every session with a peer has in common: how it ends, what is said of it, and when it is tried again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any

import grpc
import pytest

from triserve.rpc.errors import Overloaded, Unavailable
from triserve.rpc.server import ServiceServer
from triserve.rpc.session import MalformedMessage, PeerSession, next_backoff_s
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

SERVICE = "triserve.v1.SamplerService"


class _Session(PeerSession):
    """Remembers what it was told; a test says what becomes of the greeting and of the open stream."""

    stage = "sampler"
    service = SERVICE

    @property
    def in_flight(self) -> int:
        """It gives the peer nothing."""
        return 0

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.opened = asyncio.Event()
        self.ends = asyncio.Event()
        self.greets: Callable[[grpc.aio.Channel], Awaitable[object]] | None = None
        self.error: Exception = Unavailable("the test ends it")
        self.lost: asyncio.Queue[str] = asyncio.Queue()
        self.changes: asyncio.Queue[bool] = asyncio.Queue()

    async def _greet(self, channel: grpc.aio.Channel) -> None:
        if self.greets is not None:
            await self.greets(channel)

    def _parts(self) -> Sequence[Coroutine[Any, Any, None]]:
        self.opened.set()
        return (self._run(),)

    async def _run(self) -> None:
        await self.ends.wait()
        self.ends.clear()
        raise self.error

    def _changed(self) -> None:
        self.changes.put_nowait(self.ready)

    def _lost(self, error: Unavailable) -> None:
        self.lost.put_nowait(error.message)


class _DyingSession(_Session):
    """Its stream breaks in the moment in which the session is cancelled: what a task group does then is to report the break alone."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1")
        self.talks = asyncio.Event()

    async def _session(self, channel: grpc.aio.Channel) -> None:
        self.talks.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("broken", [Unavailable("the peer is gone")]) from None


class _Servicer(sampler_pb2_grpc.SamplerServiceServicer):
    async def GetSamplerInfo(self, request: Any, context: Any) -> sampler_pb2.GetSamplerInfoResponse:
        raise Overloaded("it has 8 requests at 10.1.2.3:4567\nERROR forged" + "x" * 1000)

    async def Sample(self, request_iterator: Any, context: Any) -> AsyncIterator[sampler_pb2.SampleResponse]:
        yield sampler_pb2.SampleResponse()


@pytest.fixture
async def peer() -> Any:
    """A server that is ready, and a session with it."""
    server = ServiceServer([SERVICE], lambda s: sampler_pb2_grpc.add_SamplerServiceServicer_to_server(_Servicer(), s), "127.0.0.1:0")
    await server.start()
    await server.health.set_ready(True)
    session = _Session(f"127.0.0.1:{server.port}")
    yield server, session
    await session.close()
    await server.stop(0)


async def _soon(waits: Awaitable[Any]) -> Any:
    return await asyncio.wait_for(waits, 20)


async def test_closing_ends_although_the_stream_breaks_meanwhile() -> None:
    session = _DyingSession()
    session.start()
    await session.talks.wait()
    await asyncio.wait_for(session.close(), 20)
    assert not session.ready


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Unavailable("it left frame 3 unanswered for 20 s"), "it left frame 3 unanswered for 20 s"),
        (MalformedMessage("token is 9, the limit is 7"), "it sent a malformed message: token is 9, the limit is 7"),
        (asyncio.InvalidStateError("call is done"), "it ended the stream"),
        (RuntimeError("a fault of ours at 10.1.2.3:80"), "its stream broke"),
    ],
    ids=["refused", "malformed", "ended", "ours"],
)
async def test_requests_are_told_why_they_were_lost_without_an_address(peer: Any, error: Exception, words: str) -> None:
    _, session = peer
    session.error = error
    session.start()
    await _soon(session.opened.wait())
    session.ends.set()
    assert await _soon(session.lost.get()) == f"the sampler process that had the request was lost: {words}"
    assert [session.changes.get_nowait(), session.changes.get_nowait()] == [True, False]


async def test_a_peers_own_words_are_for_the_log_alone(peer: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, session = peer
    session.greets = lambda channel: sampler_pb2_grpc.SamplerServiceStub(channel).GetSamplerInfo(sampler_pb2.GetSamplerInfoRequest())
    session.start()
    with caplog.at_level(logging.WARNING):
        message = await _soon(session.lost.get())
        await _soon(session.lost.get())
    assert message == "the sampler process that had the request was lost: it ended the stream with an error"
    (line, *_) = [record.getMessage() for record in caplog.records if "no session" in record.getMessage()]
    assert line.startswith(f"no session with sampler {session.target}: it has 8 requests at 10.1.2.3:4567?ERROR forged")
    assert len(line) < 400


async def test_a_peer_that_is_not_there_is_named_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    session = _Session("127.0.0.1:1")
    session.start()
    message = await _soon(session.lost.get())
    await _soon(session.lost.get())
    await session.close()
    assert message == "the sampler process that had the request was lost: it is not reachable"
    assert "no session with sampler 127.0.0.1:1: it is not reachable" in caplog.text


async def test_a_peer_that_stops_being_ready_keeps_its_stream_and_gets_nothing_new(peer: Any) -> None:
    server, session = peer
    session.start()
    assert await _soon(session.changes.get())
    await server.health.set_ready(False)
    assert not await _soon(session.changes.get())
    assert session.lost.empty()
    await server.health.set_ready(True)
    assert await _soon(session.changes.get())


async def test_a_session_comes_back(peer: Any) -> None:
    _, session = peer
    session.start()
    for _ in range(2):
        await _soon(session.opened.wait())
        session.opened.clear()
        session.ends.set()
        await _soon(session.lost.get())
    await _soon(session.opened.wait())


def test_a_peer_that_breaks_the_contract_again_and_again_is_asked_less_and_less_often() -> None:
    waits = [0.05]
    for _ in range(12):
        waits.append(next_backoff_s(waits[-1], was_open=True, is_malformed=True))
    assert waits == sorted(waits)
    assert (waits[1], waits[-1]) == (0.1, 30.0)


def test_a_peer_that_was_lost_is_asked_at_once_and_one_that_is_not_there_every_second() -> None:
    assert next_backoff_s(30.0, was_open=True, is_malformed=False) == 0.05
    assert next_backoff_s(0.8, was_open=False, is_malformed=False) == 1.0
    assert next_backoff_s(30.0, was_open=False, is_malformed=False) == 1.0
