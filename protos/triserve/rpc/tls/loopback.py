"""Which addresses stay on this machine, and what must not leave it in plain text. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit


class PlainText(NamedTuple):
    """A way on which this process speaks without TLS."""

    # As an operator would have set it: GATEWAY_LISTEN.
    variable: str
    # "host:port", or a URL.
    address: str
    # What would give it TLS.
    remedy: str


def is_loopback(address: str) -> bool:
    """Whether nobody else can be there.

    A name is looked up by whoever speaks, and may be anything but `localhost`.

    Args:
        address: "host:port", a path of a Unix socket as unix:PATH, or a URL such as dns://server/name:port.
    """
    if address.startswith("unix:"):
        return True
    if "://" in address:
        parts = urlsplit(address)
        # For these two, whom to ask is where others have whom to reach.
        host = _host(parts.path[1:]) if parts.scheme in ("dns", "srv") else parts.hostname or ""
    else:
        host = _host(address)
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        found = ip_address(host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return (mapped or found).is_loopback


def require_no_plain_text(variable: str, ways: Iterable[PlainText]) -> None:
    """Refuses what would leave this machine in plain text.

    Args:
        variable: That asks for it.
        ways: On which this process would speak.

    Raises:
        ValueError: for each, names its variable, its address without any password, and what is to be set.
    """
    wrong = [
        f"{way.variable} is {_without_user(way.address)}, beyond loopback, and is not encrypted without {way.remedy}"
        for way in ways
        if not is_loopback(way.address)
    ]
    if wrong:
        raise ValueError(f"{variable} refuses plain text: {'; '.join(wrong)}")


def _host(address: str) -> str:
    host, colon, port = address.rpartition(":")
    return (host if colon and port.isdecimal() else address).strip("[]")


def _without_user(address: str) -> str:
    scheme, mark, rest = address.partition("://")
    return f"{scheme}{mark}{rest.partition('?')[0].rpartition('@')[2]}" if mark else address
