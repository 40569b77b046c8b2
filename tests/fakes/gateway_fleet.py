"""A real gateway in front of fake stages, all over real sockets in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateway.service import GatewayService
from gateway.settings import Settings
from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer
from triserve.rpc.traces.spans import Tracer

_PATIENCE_S = 60.0


async def eventually(condition: Callable[[], Any], what: str = "the condition") -> None:
    """Lets the event loop run until a condition holds.

    Raises:
        AssertionError: it does not come to hold; says what.
    """
    end = asyncio.get_running_loop().time() + _PATIENCE_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"still not so: {what}"
        await asyncio.sleep(0.001)


@dataclass
class GatewayFleet:
    """A gateway and the fakes behind it."""

    service: GatewayService
    tokenizers: list[FakeTokenizer]
    computes: list[FakeCompute]

    @property
    def url(self) -> str:
        """Base of the HTTP API."""
        return f"http://127.0.0.1:{self.service.port}"

    @property
    def tokenizer(self) -> FakeTokenizer:
        """The first tokenizer."""
        return self.tokenizers[0]

    @property
    def compute(self) -> FakeCompute:
        """The first replica."""
        return self.computes[0]

    @property
    def active(self) -> int:
        """Answers the gateway has under way."""
        return self.service.gateway.admission.active

    @property
    def ready(self) -> bool:
        """Whether every fake is connected."""
        return all(peer.ready for peer in self.service.gateway.fleet.peers)


@asynccontextmanager
async def running_fleet(
    *,
    tokenizers: Sequence[FakeTokenizer] | None = None,
    computes: Sequence[FakeCompute] | None = None,
    addresses: Mapping[str, Any] = MappingProxyType({}),
    wait: bool = True,
    tracer: Tracer | None = None,
    **settings: Any,
) -> AsyncIterator[GatewayFleet]:
    """Starts fakes and a gateway on free ports, waits until all are connected, and takes them down.

    Args:
        tokenizers: default: one.
        computes: default: one.
        addresses: settings of the gateway that say where its stages are, in place of those of the fakes.
        wait: whether to wait until all are connected.
        tracer: of the gateway.
        settings: of the gateway, besides addresses.
    """
    tokenizers = [FakeTokenizer()] if tokenizers is None else list(tokenizers)
    computes = [FakeCompute()] if computes is None else list(computes)
    fakes: list[FakeTokenizer | FakeCompute] = [*tokenizers, *computes]
    for fake in fakes:
        await fake.start()
    known: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "grpc_listen": "127.0.0.1:0",
        "tokenizers": tuple(fake.target for fake in tokenizers),
        "computes": tuple(fake.target for fake in computes),
        "model_name": "tiny",
        "drain_timeout_s": 0.0,
    }
    service = GatewayService(Settings(**{**known, **addresses, **settings}), tracer)
    await service.start()
    fleet = GatewayFleet(service, list(tokenizers), list(computes))
    try:
        if wait:
            await eventually(lambda: fleet.ready, "every stage is connected")
        yield fleet
    finally:
        for fake in fakes:
            fake.flowing.set()
        await service.stop()
        for fake in fakes:
            await fake.kill()
