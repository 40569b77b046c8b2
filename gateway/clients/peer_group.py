"""Tokenizers and replicas that serve the same: what one request is led through, from its first stage to its last."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

from gateway.clients.compute import ComputePeer
from gateway.clients.replica_choice import ChoicePolicy
from gateway.clients.tokenizer import TokenizerPeer
from gateway.flow.served_model import ServedModel, is_by_priority, name_of_model, served_model
from triserve.rpc.errors import Unavailable
from triserve.v1 import common_pb2, tokenizer_pb2

T = TypeVar("T")

# Of the replica that has the fewest: requests that wait there are no sign of a full group yet.
_FEW_WAITING = 4


class GroupKey(NamedTuple):
    """What replicas agree on that serve together: their answers are the same to the bit."""

    tokenizer_sha256: str
    weights_revision: str
    computation: str

    @classmethod
    def of(cls, fingerprint: common_pb2.Fingerprint) -> GroupKey:
        """That of a replica."""
        return cls(fingerprint.tokenizer_sha256, fingerprint.weights_revision, fingerprint.computation)

    @property
    def name(self) -> str:
        """A short name: the system fingerprint of its answers."""
        return name_of_model(*self)

    def takes(self, tokenizer: common_pb2.Fingerprint) -> bool:
        """Whether a tokenizer, which may not know of weights, is one of theirs."""
        is_same = tokenizer.weights_revision in ("", self.weights_revision) or not self.weights_revision
        return tokenizer.tokenizer_sha256 == self.tokenizer_sha256 and is_same


class Members(NamedTuple):
    """The peers of a group that take requests now."""

    tokenizers: list[TokenizerPeer]
    computes: list[ComputePeer]


class PeerGroup:
    """One group. Lives on in the requests that it serves, also when nobody is in it any more.

    Args:
        key: what its replicas agree on.
        policy: chooses the replica of a request.
        changed: waits until a peer becomes ready or stops being so.
        on_retry: called with the stage when a request is tried again.
        retry_wait_s: how long a request waits for a process in place of one that was lost.
    """

    def __init__(
        self,
        key: GroupKey,
        *,
        policy: ChoicePolicy,
        changed: Callable[[], Awaitable[None]],
        on_retry: Callable[[str], None],
        retry_wait_s: float,
    ) -> None:
        self.key = key
        self._changed = changed
        self._policy = policy
        self._on_retry = on_retry
        self._retry_wait_s = retry_wait_s
        self._members = Members([], [])

    @property
    def members(self) -> Members:
        """Who takes requests now."""
        return self._members

    def set_members(self, members: Members) -> None:
        """Who takes requests from now on."""
        self._members = members
        self.__dict__.pop("model", None)

    @property
    def is_complete(self) -> bool:
        """Whether it can serve a request."""
        return bool(self._members.tokenizers and self._members.computes)

    @property
    def since_ms(self) -> int:
        """When its first replica began, Unix time in milliseconds: what is rolled out is younger than what it replaces."""
        return min((peer.info.started_at_ms for peer in self._members.computes if peer.info is not None), default=0)

    @property
    def waiting(self) -> int:
        """Requests that wait at the replica where the fewest do."""
        return min((peer.waiting for peer in self._members.computes), default=0)

    @property
    def has_room(self) -> bool:
        """Whether it has a replica where a request need not wait."""
        return self.is_complete and self.waiting <= _FEW_WAITING

    @property
    def tokenizer_info(self) -> tokenizer_pb2.GetTokenizerInfoResponse:
        """What its first tokenizer says of itself; it must be complete."""
        return next(peer.info for peer in self._members.tokenizers if peer.info is not None)

    @cached_property
    def model(self) -> ServedModel:
        """What it serves; it must be complete."""
        return served_model(self.tokenizer_info, [peer.info for peer in self._members.computes if peer.info is not None])

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

    def choose(
        self, token_ids: Sequence[int], tenant: str, *, by_priority: bool = False, without: Collection[object] = ()
    ) -> ComputePeer | None:
        """The replica that is to get a request; None if none is ready.

        Args:
            token_ids: its prompt.
            tenant: whose it is.
            by_priority: whether it must be one that looks at priorities.
            without: replicas that have failed it.
        """
        ready = [peer for peer in self._members.computes if peer.ready and peer not in without]
        if by_priority:
            ready = [peer for peer in ready if peer.info is not None and is_by_priority(peer.info)]
        if len(ready) < 2:
            return ready[0] if ready else None
        return ready[self._policy.best(ready, token_ids, tenant)]

    async def changed(self) -> None:
        """Waits until a peer becomes ready or stops being so."""
        await self._changed()

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
        """The least busy tokenizer that is ready, of equally busy ones the one that was idle longest; None if there is none."""
        ready = [peer for peer in self._members.tokenizers if peer.ready and peer is not without]
        return min(ready, key=lambda peer: (peer.in_flight, peer.asked_at), default=None)
