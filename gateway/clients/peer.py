"""What the gateway's sessions with tokenizers and replicas have in common: peers say what they serve."""

from __future__ import annotations

from collections.abc import Callable

from triserve.rpc.session import PeerSession
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import common_pb2


class Peer(PeerSession):
    """One process of another stage and the session kept with it.

    Args:
        target: "host:port".
        on_change: called when the peer becomes ready or stops being so.
        tls: see `PeerSession`.
    """

    def __init__(self, target: str, *, on_change: Callable[[], None], tls: ClientTls | None = None) -> None:
        super().__init__(target, tls)
        self.fingerprint: common_pb2.Fingerprint | None = None
        self._on_change = on_change

    def _changed(self) -> None:
        self._on_change()
