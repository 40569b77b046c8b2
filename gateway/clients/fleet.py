"""All tokenizers and replicas of one gateway, and the rule that they serve the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from gateway.clients.compute import ComputePeer
from gateway.clients.peer import Peer
from gateway.clients.replica_choice import ChoicePolicy
from gateway.clients.tokenizer import TokenizerPeer
from gateway.flow.served_model import ServedModel, is_by_priority, served_model
from triserve.rpc.errors import Unavailable
from triserve.rpc.fingerprint import require_same
from triserve.v1 import common_pb2, compute_pb2, tokenizer_pb2

T = TypeVar("T")


class Fleet:
    """The peers of a gateway.

    Args:
        tokenizers: "host:port" of each tokenizer.
        computes: "host:port" of each compute replica.
        gateway_name: told to replicas, for their logs.
        policy: chooses the replica of a request.
        on_change: called when a peer becomes ready or stops being so.
        on_stale: called with the number of deltas that belong to no attempt under way.
        on_retry: called with the stage when a request is tried again.
        retry_wait_s: how long a request waits for a process in place of one that was lost.
    """

    def __init__(
        self,
        tokenizers: Sequence[str],
        computes: Sequence[str],
        *,
        gateway_name: str,
        policy: ChoicePolicy,
        on_change: Callable[[], None],
        on_stale: Callable[[int], None],
        on_retry: Callable[[str], None],
        retry_wait_s: float,
    ) -> None:
        self._retry_wait_s = retry_wait_s
        self._policy = policy
        self._name = gateway_name
        self._on_change = on_change
        self._on_retry = on_retry
        self._changed = asyncio.Event()
        self.tokenizers = [TokenizerPeer(target, agree=self._require_same, on_change=self._change) for target in tokenizers]
        self.computes = [
            ComputePeer(target, hello=self._hello, agree=self._require_same, on_change=self._change, on_stale=on_stale)
            for target in computes
        ]

    @property
    def peers(self) -> list[Peer]:
        """Every peer of either stage."""
        return [*self.tokenizers, *self.computes]

    @property
    def ready(self) -> bool:
        """Whether a request can be served: each stage has a peer that is ready."""
        return not self.missing

    @property
    def missing(self) -> list[str]:
        """Stages without a ready peer."""
        ready = {peer.stage for peer in self.peers if peer.ready}
        return [stage for stage in (TokenizerPeer.stage, ComputePeer.stage) if stage not in ready]

    def start(self) -> None:
        """Connects to all, for as long as the gateway lives."""
        for peer in self.peers:
            peer.start()

    async def close(self) -> None:
        """Leaves all."""
        await asyncio.gather(*(peer.close() for peer in self.peers))

    def model(self) -> ServedModel:
        """What is served now.

        Raises:
            Unavailable: a stage has no ready peer; names it.
        """
        if self.missing:
            raise Unavailable(f"no {' and no '.join(self.missing)} process is ready")
        tokenizer = next(peer.info for peer in self.tokenizers if peer.ready and peer.info is not None)
        return served_model(tokenizer, [peer.info for peer in self.computes if peer.ready and peer.info is not None])

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        """Encodes on the least busy tokenizer; if that one is lost, once more on another or on the same one when it is back.

        Raises:
            Unavailable: no tokenizer is ready, two were lost, or none came back in time.
            ServiceError: whatever the tokenizer says.
        """
        return await self._on_tokenizer(lambda peer: peer.encode(request))

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Decodes, as `encode` encodes."""
        return await self._on_tokenizer(lambda peer: peer.decode(request))

    async def _on_tokenizer(self, ask: Callable[[TokenizerPeer], Awaitable[T]]) -> T:
        first = self._free_tokenizer()
        if first is None:
            raise Unavailable("no tokenizer process is ready")
        try:
            return await ask(first)
        except Unavailable as error:
            try:
                async with asyncio.timeout(self._retry_wait_s):
                    # The same process, once it is back, is as good as another.
                    while (again := self._free_tokenizer(without=first) or self._free_tokenizer()) is None:
                        await self.changed()
            except TimeoutError:
                raise error from None
        self._on_retry("tokenizer")
        return await ask(again)

    def _free_tokenizer(self, *, without: TokenizerPeer | None = None) -> TokenizerPeer | None:
        """The least busy tokenizer that is ready; None if there is none."""
        ready = [peer for peer in self.tokenizers if peer.ready and peer is not without]
        return min(ready, key=lambda peer: peer.in_flight, default=None)

    def choose(self, *, by_priority: bool = False, without: Collection[object] = ()) -> ComputePeer | None:
        """The replica that is to get a request; None if none is ready.

        Args:
            by_priority: whether it must be one that looks at priorities.
            without: replicas that have failed it.
        """
        ready = [peer for peer in self.computes if peer.ready and peer not in without]
        if by_priority:
            ready = [peer for peer in ready if peer.info is not None and is_by_priority(peer.info)]
        if not ready:
            return None
        return ready[self._policy.best(ready)]

    async def changed(self) -> None:
        """Waits until a peer becomes ready or stops being so."""
        self._changed.clear()
        await self._changed.wait()

    async def _hello(self) -> compute_pb2.GatewayHello:
        while True:
            for peer in self.tokenizers:
                if peer.ready and peer.fingerprint is not None:
                    return compute_pb2.GatewayHello(gateway_name=self._name, fingerprint=peer.fingerprint)
            await self.changed()

    def _change(self) -> None:
        self._changed.set()
        self._on_change()

    def _require_same(self, newcomer: Peer, fingerprint: common_pb2.Fingerprint) -> None:
        for peer in self.peers:
            if peer is not newcomer and peer.ready and peer.fingerprint is not None:
                require_same(peer.fingerprint, fingerprint, peer=newcomer.stage)
