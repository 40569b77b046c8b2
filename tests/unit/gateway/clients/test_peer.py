"""What every peer's session has in common."""

from __future__ import annotations

import asyncio

import grpc

from gateway.clients.peer import Peer
from triserve.rpc.errors import ServiceError, Unavailable


class _DyingPeer(Peer):
    """Its stream breaks in the moment in which the session is cancelled: what a task group does then is to report the break alone."""

    stage = "compute"
    service = "triserve.v1.ComputeService"

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1", agree=lambda peer, fingerprint: None, on_change=lambda: None)
        self.talks = asyncio.Event()

    @property
    def in_flight(self) -> int:
        return 0

    async def _session(self, channel: grpc.aio.Channel) -> None:
        self.talks.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ExceptionGroup("broken", [Unavailable("the peer is gone")]) from None

    async def _talk(self, channel: grpc.aio.Channel) -> None:
        raise AssertionError("the session is ours")

    async def _write(self) -> None:
        raise AssertionError("the session is ours")

    def _lost(self, error: ServiceError) -> None:
        pass


async def test_closing_ends_although_the_stream_breaks_meanwhile() -> None:
    peer = _DyingPeer()
    peer.start()
    await peer.talks.wait()
    await asyncio.wait_for(peer.close(), 5)
    assert not peer.ready
