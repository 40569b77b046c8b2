"""How an operator names the processes of another stage: by address, or by a name that DNS knows. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Literal, NamedTuple

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?")
_SCHEME = re.compile(r"(?P<kind>dns|srv)://(?P<authority>[^/]*)/(?P<rest>.+)")
_DNS_PORT = 53


class NameServer(NamedTuple):
    """A DNS server to ask in place of the system's."""

    address: str
    port: int


class PeerName(NamedTuple):
    """One name.

    Attributes:
        kind: "address": one process, at `host` and `port`. "dns": a process at every A record of `host`, or AAAA where there is none. "srv": a
            process for every SRV record of `host`, which has the port.
        host: A name of DNS, or an IP address.
        port: 0 for "srv".
        server: Who is asked; None = the system's resolver.
    """

    kind: Literal["address", "dns", "srv"]
    host: str
    port: int
    server: NameServer | None = None

    @property
    def target(self) -> str:
        """As gRPC takes an address."""
        return address_of(self.host, self.port)


def parse_peer_name(text: str) -> PeerName:
    """Reads "host:port", "dns://[server[:port]]/name:port" or "srv://[server[:port]]/name".

    Raises:
        ValueError: it is none of them; names it.
    """
    match = _SCHEME.fullmatch(text)
    if match is None:
        if "/" in text:
            raise ValueError(f"{text!r} is none of host:port, dns:///name:port and srv:///name")
        return PeerName("address", *_host_and_port(text, text))
    server = _server(match["authority"], text)
    if match["kind"] == "srv":
        if not _HOST.fullmatch(match["rest"]):
            raise ValueError(f"{text!r} has no name such as srv:///_grpc._tcp.compute")
        return PeerName("srv", match["rest"], 0, server)
    host, port = _host_and_port(match["rest"], text)
    if not _HOST.fullmatch(host) or _is_ip(host):
        raise ValueError(f"{text!r} has no name such as dns:///tokenizer:7200")
    return PeerName("dns", host, port, server)


def parse_peer_names(texts: Sequence[str]) -> tuple[PeerName, ...]:
    """Reads several.

    Raises:
        ValueError: one is no name, or is there twice.
    """
    if len(set(texts)) != len(texts):
        raise ValueError("an address is given twice")
    return tuple(parse_peer_name(text) for text in texts)


def address_of(host: str, port: int) -> str:
    """As gRPC takes an address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _host_and_port(text: str, whole: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{whole!r} is no host:port")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not _HOST.fullmatch(bare) and not _is_ip(bare):
        raise ValueError(f"{whole!r} is no host:port")
    return bare, int(port)


def _server(authority: str, whole: str) -> NameServer | None:
    if not authority:
        return None
    if _is_ip(authority.strip("[]")):
        return NameServer(authority.strip("[]"), _DNS_PORT)
    host, port = _host_and_port(authority, whole)
    if not _is_ip(host):
        raise ValueError(f"{whole!r} names its DNS server by a name, which must be an IP address")
    return NameServer(host, port)


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
