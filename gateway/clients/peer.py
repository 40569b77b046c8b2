"""What the gateway's sessions with tokenizers and replicas have in common: peers must agree about what they serve."""

from __future__ import annotations

import abc
from collections.abc import Callable

from triserve.rpc.session import PeerSession
from triserve.v1 import common_pb2


class Peer(PeerSession):
    """One process of another stage and the session kept with it.

    Args:
        target: "host:port".
        agree: raises `FingerprintMismatch` if the peer's fingerprint is not that of the others.
        on_change: called when the peer becomes ready or stops being so.
    """

    def __init__(self, target: str, *, agree: Callable[[Peer, common_pb2.Fingerprint], None], on_change: Callable[[], None]) -> None:
        super().__init__(target)
        self.fingerprint: common_pb2.Fingerprint | None = None
        self._agree = agree
        self._on_change = on_change

    @property
    @abc.abstractmethod
    def in_flight(self) -> int:
        """Requests of ours that it has."""

    def _admit(self, fingerprint: common_pb2.Fingerprint) -> None:
        """The peer has said what it is.

        Raises:
            FingerprintMismatch: it is not what the others are.
        """
        self._agree(self, fingerprint)
        self.fingerprint = fingerprint

    def _changed(self) -> None:
        self._on_change()
