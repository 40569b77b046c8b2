"""What the gateway's side of every long-lived stream has in common: connect, agree, watch health, connect again."""

from __future__ import annotations

import abc
import asyncio
import logging
import random
from collections.abc import Callable
from typing import ClassVar, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triserve.rpc.channel import open_channel
from triserve.rpc.errors import ServiceError, Unavailable, from_rpc_error
from triserve.v1 import common_pb2

logger = logging.getLogger(__name__)

E = TypeVar("E", bound=Exception)

HELLO_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 1.0


class Peer(abc.ABC):
    """One process of another stage and the session kept with it.

    A session begins when the peer says it is ready, and ends with the stream. In between, a peer that stops being ready gets no new
    requests and goes on with those it has.

    Args:
        target: "host:port".
        agree: raises `FingerprintMismatch` if the peer's fingerprint is not that of the others.
        on_change: called when the peer becomes ready or stops being so.
    """

    stage: ClassVar[str]
    service: ClassVar[str]

    def __init__(self, target: str, *, agree: Callable[[Peer, common_pb2.Fingerprint], None], on_change: Callable[[], None]) -> None:
        self.target = target
        # Why there is no session now, for the log; empty if there is one.
        self.problem = "not connected yet"
        self.fingerprint: common_pb2.Fingerprint | None = None
        self._agree = agree
        self._on_change = on_change
        self._serving = asyncio.Event()
        self._open = False
        self._is_closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes new requests."""
        return self._open and self._serving.is_set()

    @property
    @abc.abstractmethod
    def in_flight(self) -> int:
        """Requests of ours that it has."""

    def start(self) -> None:
        """Keeps a session from now on."""
        self._task = asyncio.create_task(self._keep_session(), name=f"{self.stage} {self.target}")

    async def close(self) -> None:
        """Ends the session; requests under way fail."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @abc.abstractmethod
    async def _talk(self, channel: grpc.aio.Channel) -> None:
        """Opens the stream, calls `_opened` and reads until it ends. Leaves by an exception alone."""

    @abc.abstractmethod
    async def _write(self) -> None:
        """Writes to the open stream what is to be sent, for ever."""

    @abc.abstractmethod
    def _lost(self, error: ServiceError) -> None:
        """The stream is gone: fails all requests of it."""

    def _opened(self, fingerprint: common_pb2.Fingerprint) -> None:
        """The stream is open and the peer has said what it is.

        Raises:
            FingerprintMismatch: it is not what the others are.
        """
        self._agree(self, fingerprint)
        self.fingerprint = fingerprint
        self.problem = ""
        self._open = True
        logger.info("connected to %s %s", self.stage, self.target)
        self._on_change()

    async def _keep_session(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            channel = open_channel(self.target)
            try:
                await self._session(channel)
            except* grpc.aio.AioRpcError as group:
                error: ServiceError = from_rpc_error(_first(group, grpc.aio.AioRpcError), peer=f"{self.stage} {self.target}")
            except* ServiceError as group:
                error = _first(group, ServiceError)
            except* asyncio.InvalidStateError:
                error = Unavailable(f"{self.stage} {self.target} ended the stream")
            except* TimeoutError:
                error = Unavailable(f"{self.stage} {self.target} did not answer within {HELLO_TIMEOUT_S:g} s")
            except* Exception as group:
                logger.error("the stream to %s %s broke", self.stage, self.target, exc_info=_first(group, Exception))
                error = Unavailable(f"{self.stage} {self.target} sent what could not be understood")
            finally:
                was_open = self._open
                self._close_session()
                await channel.close()
            if was_open or error.message != self.problem:
                logger.warning("no session with %s %s: %s", self.stage, self.target, error.message)
            self.problem = error.message
            if self._is_closing:
                # A task group whose tasks fail while it is cancelled forgets that it was cancelled.
                return
            backoff_s = _FIRST_BACKOFF_S if was_open else min(_LAST_BACKOFF_S, backoff_s * 2)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _session(self, channel: grpc.aio.Channel) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_health(channel))
            await self._serving.wait()
            tasks.create_task(self._write())
            await self._talk(channel)

    def _close_session(self) -> None:
        was_ready = self.ready
        self._open = False
        self._serving.clear()
        self._lost(Unavailable(f"the {self.stage} process that had the request was lost"))
        if was_ready:
            self._on_change()

    async def _watch_health(self, channel: grpc.aio.Channel) -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=self.service))
        async for response in watch:
            was_ready = self.ready
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                self._serving.set()
            else:
                self._serving.clear()
            if self.ready != was_ready:
                logger.info("%s %s is %s", self.stage, self.target, "ready" if self.ready else "not ready")
                self._on_change()
        raise Unavailable(f"{self.stage} {self.target} ended its health watch")


def _first(group: BaseExceptionGroup[E], kind: type[E]) -> E:
    """The first exception in a group of groups, all of one kind."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, kind), "except* gives groups of the kind it was asked for"
    return error
