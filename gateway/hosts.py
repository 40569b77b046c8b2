"""The names this server answers to, for clients that no key makes known."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class AllowedHosts:
    """Which Host headers are answered.

    An IP address always is: no name was looked up for it, so none can have been made to lie. So is a request without the header, which no
    browser sends.

    Args:
        names: lower case, without ports; None = any.
    """

    names: frozenset[str] | None

    @classmethod
    def anybody(cls) -> AllowedHosts:
        """All, where keys tell who asks."""
        return cls(None)

    @classmethod
    def of(cls, listen: str, more: Collection[str]) -> AllowedHosts:
        """This machine's own names and those an operator adds.

        Args:
            listen: "host:port".
            more: names, or "*" for any.
        """
        if "*" in more:
            return cls(None)
        own = ("localhost", socket.gethostname(), _name(listen))
        return cls(frozenset(name.lower().rstrip(".") for name in (*own, *more)))

    def allows(self, host: str) -> bool:
        """Whether a request with this Host header is answered."""
        if self.names is None or not host:
            return True
        name = _name(host).lower().rstrip(".")
        return name in self.names or name.endswith(".localhost") or _is_address(name)


def _name(host: str) -> str:
    """The name in "name", "name:port" or "[address]:port"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
