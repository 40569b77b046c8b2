"""Sessions with all processes of a stage, as many as there are now: newcomers are connected, those that vanish are drained."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from triserve.rpc.peer_finder import PeerFinder
from triserve.rpc.peer_names import PeerName
from triserve.rpc.session import PeerSession

logger = logging.getLogger(__name__)

# How often a peer that is to be left is looked at.
_SWEEP_S = 0.2

P = TypeVar("P", bound=PeerSession)


class PeerSet(Generic[P]):
    """The peers of one stage.

    A peer whose address is no longer found gets no new requests once another one works, and is left when it has none, or when its session ends. If
    it is found again before, it stays.

    Args:
        names: where the stage is.
        make: makes the session with an address; it is started here.
        interval_s: between two lookups of names.
        on_removed: called with a peer that was left.
        finder: makes what finds addresses; of `PeerFinder`'s arguments.
    """

    def __init__(
        self,
        names: Sequence[PeerName],
        make: Callable[[str], P],
        *,
        interval_s: float,
        on_removed: Callable[[P], None] = lambda peer: None,
        finder: Callable[..., PeerFinder] = PeerFinder,
    ) -> None:
        self._make = make
        self._on_removed = on_removed
        self._peers: dict[str, P] = {}
        self._targets: tuple[str, ...] = ()
        self._finder = finder(names, interval_s=interval_s, on_found=self._find)
        self._sweeping: asyncio.Task[None] | None = None

    @property
    def peers(self) -> list[P]:
        """All there are, those to be left among them."""
        return list(self._peers.values())

    @property
    def failures(self) -> int:
        """Lookups that failed."""
        return self._finder.failures

    def start(self) -> None:
        """Connects to all that is found, from now on."""
        self._finder.start()

    def look_now(self) -> None:
        """Looks at once for who has come and gone, as where a peer was lost."""
        self._finder.look_now()

    async def close(self) -> None:
        """Leaves all."""
        await self._finder.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        await asyncio.gather(*(peer.close() for peer in self.peers))

    def _find(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        for target in targets:
            if target not in self._peers:
                self._peers[target] = self._make(target)
                self._peers[target].start()
        self._retire()
        if self._peers.keys() - set(targets) and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="peer-set")

    def _retire(self) -> None:
        """Those that are not found any more, unless there is nobody in their place: newcomers that are found with the same answer are still to connect."""
        has_others = any(self._peers[target].ready for target in self._targets)
        for target, peer in self._peers.items():
            is_gone = target not in self._targets
            if peer.is_retiring != is_gone and (has_others or not is_gone):
                logger.info("%s %s is %s", peer.stage, target, "not found any more and is left" if is_gone else "found again")
                peer.retire(is_gone)

    async def _sweep(self) -> None:
        while gone := self._peers.keys() - set(self._targets):
            await asyncio.sleep(_SWEEP_S)
            self._retire()
            for target in gone - set(self._targets):
                peer = self._peers[target]
                if not peer.is_open or (peer.is_retiring and not peer.in_flight):
                    del self._peers[target]
                    await peer.close()
                    self._on_removed(peer)
        self._sweeping = None
