"""All tokenizers and replicas of one gateway, and which of them serve together.

While other weights or another tokenizer are rolled out, peers of both models are there. They are grouped by what they say they serve; a request is led
through one group from its first stage to its last. New requests go to the newest group that is complete and has room, so that a new model takes over as its
replicas come, and what the old ones hold ends there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from gateway.clients.compute import ComputePeer
from gateway.clients.peer import Peer
from gateway.clients.peer_group import GroupKey, Members, PeerGroup
from gateway.clients.prefix_index import PageBudget, PrefixIndex
from gateway.clients.replica_choice import ChoicePolicy
from gateway.clients.tokenizer import TokenizerPeer
from triserve.rpc.errors import Unavailable
from triserve.rpc.peer_names import PeerName
from triserve.rpc.peer_set import PeerSet
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import compute_pb2

logger = logging.getLogger(__name__)


class FleetTls(NamedTuple):
    """The gateway's end of the connections to each stage."""

    tokenizer: ClientTls
    compute: ClientTls


class Fleet:
    """The peers of a gateway.

    Args:
        tokenizers: where the tokenizers are.
        computes: where the compute replicas are.
        dns_interval_s: between two lookups of names.
        gateway_name: told to replicas, for their logs.
        policy: chooses the replica of a request.
        on_change: called when a peer becomes ready or stops being so.
        on_stale: called with the number of deltas that belong to no attempt under way.
        on_retry: called with the stage when a request is tried again.
        retry_wait_s: how long a request waits for a process in place of one that was lost.
        prefix_index_bytes: memory for what KV pages the replicas hold; 0 = they are not asked.
        tls: of each stage's sessions; None = in plain text.
    """

    def __init__(
        self,
        tokenizers: Sequence[PeerName],
        computes: Sequence[PeerName],
        *,
        dns_interval_s: float,
        gateway_name: str,
        policy: ChoicePolicy,
        on_change: Callable[[], None],
        on_stale: Callable[[int], None],
        on_retry: Callable[[str], None],
        retry_wait_s: float,
        prefix_index_bytes: int,
        tls: FleetTls | None = None,
    ) -> None:
        self._retry_wait_s = retry_wait_s
        self._policy = policy
        self._name = gateway_name
        self._on_change = on_change
        self._on_retry = on_retry
        self._changed = asyncio.Event()
        # Those that have a replica; and those that a request still knows, which are the same ones when a replica comes.
        self._groups: dict[GroupKey, PeerGroup] = {}
        self._known: WeakValueDictionary[GroupKey, PeerGroup] = WeakValueDictionary()
        # A replica that is the only one gets everything, whatever it holds.
        self._wants_prefixes = asyncio.Event()
        budget = PageBudget(prefix_index_bytes)
        self._tokenizers = PeerSet(
            tokenizers,
            lambda target: TokenizerPeer(target, on_change=self._change, tls=tls.tokenizer if tls is not None else None),
            interval_s=dns_interval_s,
            on_removed=self._leave,
        )
        self._computes = PeerSet(
            computes,
            lambda target: ComputePeer(
                target,
                hello=self._hello,
                on_change=self._change,
                on_stale=on_stale,
                prefixes=PrefixIndex(budget),
                wants_prefixes=self._wants_prefixes if prefix_index_bytes else None,
                tls=tls.compute if tls is not None else None,
            ),
            interval_s=dns_interval_s,
            on_removed=self._leave,
        )

    @property
    def tokenizers(self) -> list[TokenizerPeer]:
        """Those that are known now."""
        return self._tokenizers.peers

    @property
    def computes(self) -> list[ComputePeer]:
        """Those that are known now."""
        return self._computes.peers

    @property
    def peers(self) -> list[Peer]:
        """Every peer of either stage."""
        return [*self.tokenizers, *self.computes]

    @property
    def groups(self) -> list[PeerGroup]:
        """Peers that serve together, the newest first; some may lack a tokenizer."""
        return sorted(self._groups.values(), key=lambda group: (-group.since_ms, group.key))

    @property
    def lookup_failures(self) -> int:
        """Times that DNS did not answer."""
        return self._tokenizers.failures + self._computes.failures

    @property
    def ready(self) -> bool:
        """Whether a request can be served."""
        return any(group.is_complete for group in self._groups.values())

    @property
    def missing(self) -> list[str]:
        """Stages without a ready peer."""
        ready = {peer.stage for peer in self.peers if peer.ready}
        return [stage for stage in (TokenizerPeer.stage, ComputePeer.stage) if stage not in ready]

    def start(self) -> None:
        """Connects to all, for as long as the gateway lives."""
        self._tokenizers.start()
        self._computes.start()

    async def close(self) -> None:
        """Leaves all."""
        await asyncio.gather(self._tokenizers.close(), self._computes.close())

    def serving(self) -> PeerGroup:
        """The group that is to get a request: the newest that has room, or else the one where the fewest wait.

        Raises:
            Unavailable: none is complete; names what is missing.
        """
        complete = [group for group in self._groups.values() if group.is_complete]
        if len(complete) == 1:
            return complete[0]
        if not complete and self.missing:
            raise Unavailable(f"no {' and no '.join(self.missing)} process is ready")
        if not complete:
            raise Unavailable("no tokenizer and compute processes of the same model are ready")
        newest = sorted(complete, key=lambda group: (-group.since_ms, group.key))
        return next((group for group in newest if group.has_room), None) or min(newest, key=lambda group: group.waiting)

    async def changed(self) -> None:
        """Waits until a peer becomes ready or stops being so."""
        self._changed.clear()
        await self._changed.wait()

    async def _hello(self) -> compute_pb2.GatewayHello:
        """As soon as a tokenizer is ready. One that has several models' tokenizers does not say which: it finds the replica's own itself."""
        while True:
            known = {peer.fingerprint.SerializeToString(): peer.fingerprint for peer in self.tokenizers if peer.ready and peer.fingerprint}
            if known:
                (fingerprint,) = known.values() if len(known) == 1 else (None,)
                return compute_pb2.GatewayHello(gateway_name=self._name, fingerprint=fingerprint)
            await self.changed()

    def _change(self) -> None:
        self._regroup()
        # Who was lost may be gone for good, and another one in its place.
        self._tokenizers.look_now()
        self._computes.look_now()
        self._changed.set()
        self._on_change()

    def _leave(self, peer: Peer) -> None:
        self._regroup()

    def _regroup(self) -> None:
        computes = [peer for peer in self.computes if peer.ready and peer.info is not None]
        if len(computes) > 1:
            self._wants_prefixes.set()
        else:
            self._wants_prefixes.clear()
        keys = {GroupKey.of(peer.info.fingerprint) for peer in computes if peer.info is not None}
        if len(keys) > 1 and not keys <= self._groups.keys():
            logger.warning(
                "replicas serve %d different models, the newest is preferred: %s",
                len(keys),
                "; ".join(f"{key.name} {_shown(key)}" for key in keys),
            )
        before, self._groups = self._groups, {key: self._known.get(key) or self._new_group(key) for key in keys}
        for key in before.keys() - keys:
            before[key].set_members(Members([], []))
        for key, group in self._groups.items():
            tokenizers = [peer for peer in self.tokenizers if peer.ready and peer.fingerprint is not None and key.takes(peer.fingerprint)]
            group.set_members(Members(tokenizers, [peer for peer in computes if _key_of(peer) == key]))

    def _new_group(self, key: GroupKey) -> PeerGroup:
        group = self._known[key] = PeerGroup(
            key, policy=self._policy, changed=self.changed, on_retry=self._on_retry, retry_wait_s=self._retry_wait_s
        )
        return group


def _key_of(peer: ComputePeer) -> GroupKey | None:
    return GroupKey.of(peer.info.fingerprint) if peer.info is not None else None


def _shown(key: GroupKey) -> str:
    """What is in the log of what peers say of themselves."""
    return " ".join(ascii(part[:length])[1:-1] for part, length in zip(key, (12, 12, 64), strict=True))
