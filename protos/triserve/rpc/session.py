"""One long-lived stream to a peer: connect, agree, watch its health, and connect again when the stream breaks."""

from __future__ import annotations

import abc
import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triserve.rpc.channel import open_channel
from triserve.rpc.errors import ServiceError, Unavailable, from_rpc_error
from triserve.rpc.tls.ends import ClientTls
from triserve.rpc.tls.failures import why_not_connected

logger = logging.getLogger(__name__)

M = TypeVar("M")

HELLO_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0
# A peer that breaks the contract loses every request it is given, and looks idle because of that: it is asked less and less often.
_LAST_BACKOFF_AFTER_MALFORMED_S = 30.0
_MAX_SHOWN_CHARS = 300


class MalformedMessage(Exception):
    """A peer sent what the contract excludes. Nothing it says can be trusted, so its stream ends; nobody else is harmed.

    Args:
        detail: what is wrong, in words that may be shown to clients: fields and limits, no text of the peer's.
    """


class PeerSession(abc.ABC):
    """Keeps one stream to one process of another stage, for as long as it is not closed.

    A session begins when the peer's health says that it is ready, and ends with the stream. In between, a peer that stops being ready, or is
    retired, gets no new requests and goes on with those it has.

    Args:
        target: "host:port".
        tls: with which certificate, and whose is expected; read again at every attempt. None = in plain text.
    """

    stage: ClassVar[str]
    # Full name, for the health watch.
    service: ClassVar[str]

    def __init__(self, target: str, tls: ClientTls | None = None) -> None:
        self.target = target
        self._tls = tls
        # Why there is no session now, for the log; empty if there is one.
        self.problem = "not connected yet"
        self._serving = asyncio.Event()
        self.is_retiring = False
        self._open = False
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""
        return self._open and self._serving.is_set() and not self.is_retiring

    @property
    def is_open(self) -> bool:
        """Whether there is a session."""
        return self._open

    @property
    @abc.abstractmethod
    def in_flight(self) -> int:
        """Requests of ours that it has."""

    def retire(self, is_retiring: bool) -> None:
        """Gives it no new requests any more, or does so again."""
        was_ready = self.ready
        self.is_retiring = is_retiring
        if self.ready != was_ready:
            self._changed()

    def start(self) -> None:
        """Keeps a session from now on."""
        self._task = asyncio.create_task(self._keep_session(), name=f"{self.stage} {self.target}")

    async def close(self) -> None:
        """Ends the session; requests under way fail."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _prepare(self) -> None:
        """Waits for what the hello needs; takes as long as it takes."""
        return

    @abc.abstractmethod
    async def _greet(self, channel: grpc.aio.Channel) -> None:
        """Opens the stream and exchanges hellos, in `HELLO_TIMEOUT_S`.

        Raises:
            MalformedMessage: the peer's hello is none.
            ServiceError: the peer is not what it should be.
        """

    @abc.abstractmethod
    def _parts(self) -> Sequence[Coroutine[Any, Any, None]]:
        """What runs while the stream is open: reading, writing. Each ends by an exception alone."""

    @abc.abstractmethod
    def _changed(self) -> None:
        """The peer has become ready or is so no longer."""

    @abc.abstractmethod
    def _lost(self, error: Unavailable) -> None:
        """There is no stream now: whatever waits for the peer fails with this error. Called after every attempt, open or not."""

    async def _keep_session(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            # Says why if the session is closed in the midst.
            cause, words = "", "it was left"
            is_malformed = was_open = False
            channel = open_channel(self.target, self._tls)
            try:
                await self._session(channel)
            except ExceptionGroup as group:
                error = _first(group)
                is_malformed = isinstance(error, MalformedMessage)
                words = self._words(error)
                # The log may have the peer's own words, too.
                cause = _one_line(self._cause(error)) if isinstance(error, grpc.aio.AioRpcError) else words
            finally:
                was_open = self._open
                self._end_session(words)
                await channel.close()
            if was_open or cause != self.problem:
                logger.warning("no session with %s %s: %s", self.stage, self.target, cause)
            self.problem = cause
            if self._is_closing:
                # A task group whose tasks fail while it is cancelled forgets that it was cancelled.
                return
            backoff_s = next_backoff_s(backoff_s, was_open=was_open, is_malformed=is_malformed)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _session(self, channel: grpc.aio.Channel) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_health(channel))
            await self._serving.wait()
            await self._prepare()
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                await self._greet(channel)
            self.problem = ""
            self._open = True
            logger.info("connected to %s %s", self.stage, self.target)
            for part in self._parts():
                tasks.create_task(part)
            self._changed()

    def _end_session(self, words: str) -> None:
        was_ready = self.ready
        self._open = False
        self._serving.clear()
        self._lost(Unavailable(f"the {self.stage} process that had the request was lost: {words}"))
        if was_ready:
            self._changed()

    async def _watch_health(self, channel: grpc.aio.Channel) -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=self.service))
        async for response in watch:
            was_ready = self.ready
            if response is not None and response.status == health_pb2.HealthCheckResponse.SERVING:
                self._serving.set()
            else:
                self._serving.clear()
            if self.ready != was_ready:
                logger.info("%s %s is %s", self.stage, self.target, "ready" if self.ready else "not ready")
                self._changed()
        raise Unavailable("it ended its health watch")

    def _cause(self, error: grpc.aio.AioRpcError) -> str:
        """What happened to the peer, for the log."""
        tls_reason = why_not_connected(error, server_name=self._tls.server_name if self._tls is not None else None)
        return from_rpc_error(error, peer="it").message + (f": {tls_reason}" if tls_reason else "")

    def _words(self, error: Exception) -> str:
        """What happened to the peer, for clients: neither its address nor its own text, which it may have made up."""
        if isinstance(error, MalformedMessage):
            return f"it sent a malformed message: {error}"
        if isinstance(error, ServiceError):
            return error.message
        if isinstance(error, grpc.aio.AioRpcError):
            return "it is not reachable" if error.code() is grpc.StatusCode.UNAVAILABLE else "it ended the stream with an error"
        if isinstance(error, asyncio.InvalidStateError):
            return "it ended the stream"
        if isinstance(error, TimeoutError):
            return f"it did not answer within {HELLO_TIMEOUT_S:g} s"
        # A fault of ours costs this session, not the process; nobody else would tell of it.
        logger.error("the stream to %s %s broke", self.stage, self.target, exc_info=error)
        return "its stream broke"


async def read_message(
    stream: grpc.aio.StreamStreamCall[Any, M] | grpc.aio.UnaryStreamCall[Any, M], kind: type[M], *, before: str = ""
) -> M:
    """The next message of a stream.

    Args:
        stream: to the peer.
        kind: of its messages.
        before: what was awaited, if that matters: " before its hello".

    Raises:
        Unavailable: the stream has ended.
        MalformedMessage: what came is no message.
    """
    message = await stream.read()
    if message is grpc.aio.EOF:
        raise Unavailable(f"it ended the stream{before}")
    # gRPC gives None for bytes that it could not read.
    if not isinstance(message, kind):
        raise MalformedMessage("its bytes are none")
    return message


def next_backoff_s(backoff_s: float, *, was_open: bool, is_malformed: bool) -> float:
    """Seconds until the next attempt.

    Args:
        backoff_s: before the attempt that has just failed.
        was_open: whether that was a session.
        is_malformed: whether it ended because the peer broke the contract.
    """
    if is_malformed:
        return min(_LAST_BACKOFF_AFTER_MALFORMED_S, 2 * backoff_s)
    return _FIRST_BACKOFF_S if was_open else min(_LAST_BACKOFF_S, 2 * backoff_s)


def _one_line(text: str) -> str:
    """A peer's words as the log may show them."""
    return "".join(character if character.isprintable() else "?" for character in text[:_MAX_SHOWN_CHARS])


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """The first exception in a group of groups."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
