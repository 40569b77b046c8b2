"""Peers that send what a test gives them, whether it is a message or not, over real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from triserve.rpc.channel import open_channel
from triserve.rpc.server import ServiceServer

# What a stream carries: a message, or bytes in its place.
Item: TypeAlias = "Message | bytes"
# Reads a peer's messages and says something.
Talk: TypeAlias = Callable[[AsyncIterator[Any]], AsyncIterator[Item]]


def to_bytes(item: Item) -> bytes:
    """What goes over the wire."""
    return item if isinstance(item, bytes) else item.SerializeToString()


class HostileServer:
    """A stage that says whatever it wants, and that it is ready.

    Args:
        service: full name.
        streams: by method: what the messages are, and the talk.
        singles: by method: what the request is, and the answer.
        listen: "host:port".
        lifetime_s: streams end after so long, so that nobody waits for ever for somebody who says nothing.
    """

    def __init__(
        self,
        service: str,
        streams: dict[str, tuple[type[Message], Talk]],
        singles: dict[str, tuple[type[Message], Callable[[], Item]]] | None = None,
        *,
        listen: str = "127.0.0.1:0",
        lifetime_s: float,
    ) -> None:
        self._lifetime_s = lifetime_s
        self._service = service
        self._streams = streams
        self._singles = singles or {}
        self.server = ServiceServer([service], self._register, listen)

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    async def __aenter__(self) -> HostileServer:
        await self.server.start()
        await self.server.health.set_ready(True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop(0)

    def _register(self, server: grpc.aio.Server) -> None:
        handlers = {}
        for method, (kind, talk) in self._streams.items():

            async def stream(requests: AsyncIterator[Any], context: Any, talk: Talk = talk) -> AsyncIterator[Item]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._lifetime_s):
                        async for item in talk(requests):
                            yield item

            handlers[method] = grpc.stream_stream_rpc_method_handler(
                stream, request_deserializer=kind.FromString, response_serializer=to_bytes
            )
        for method, (kind, answer) in self._singles.items():

            async def single(request: Any, context: Any, answer: Callable[[], Item] = answer) -> Item:
                return answer()

            handlers[method] = grpc.unary_unary_rpc_method_handler(
                single, request_deserializer=kind.FromString, response_serializer=to_bytes
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(self._service, handlers),))


async def send_all(target: str, method: str, items: Iterable[Item], *, until: asyncio.Event | None = None) -> None:
    """Opens a stream, says everything as long as it is listened to, and leaves.

    Args:
        target: "host:port".
        method: of a stream, "/service/method".
        items: what to say.
        until: the stream is kept open for so long.
    """
    async with open_channel(target) as channel:
        call: Any = channel.stream_stream(method)()
        # However the peer ends it: that it does is all that is asked of it.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for item in items:
                await call.write(to_bytes(item))
            await call.done_writing()
            if until is not None:
                await until.wait()
            while await call.read() is not grpc.aio.EOF:
                continue
        call.cancel()


async def call_all(target: str, calls: Iterable[tuple[str, Item]]) -> list[grpc.StatusCode]:
    """Makes single calls, one after the other; returns their statuses."""
    statuses = []
    async with open_channel(target) as channel:
        for method, item in calls:
            try:
                single: Any = channel.unary_unary(method)
                await single(to_bytes(item), timeout=20)
                statuses.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                statuses.append(error.code())
    return statuses


class FaultsOfOurs(logging.Handler):
    """Collects log records with a stack: faults of ours, whatever a peer has sent."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Notes one."""
        # gRPC tells of bytes that a client of ours could not read; the client then ends the stream. Its poller, one for the whole process, wakes
        # the loops of earlier tests too, which are closed.
        is_grpcs = record.name.startswith("grpc") or "PollerCompletionQueue" in record.getMessage()
        if record.exc_info and not is_grpcs:
            self.found.append(logging.Formatter().format(record))

    def __enter__(self) -> Sequence[str]:
        logging.getLogger().addHandler(self)
        return self.found

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)
