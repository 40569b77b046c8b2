"""Asks DNS where the processes behind a name are."""

from __future__ import annotations

import asyncio

import dns.asyncresolver
import dns.exception
import dns.rdatatype
import dns.resolver

from triserve.rpc.peer_names import PeerName, address_of

_TIMEOUT_S = 2.0
# Of one answer: more is none that a Service of ours has.
MAX_ADDRESSES = 1024


class LookupFailed(Exception):
    """DNS did not say where the processes are: no answer, an error, or no address. It says nothing of the processes themselves."""


async def look_up(name: PeerName) -> frozenset[str]:
    """The addresses behind a name, "host:port" each, at least one.

    Names without a dot are completed as the system's resolver does. Of a name with both, IPv4 addresses are taken: a pod of a dual-stack
    cluster would be two peers.

    Raises:
        LookupFailed: there are none, or nobody says.
    """
    if name.kind == "address":
        return frozenset([name.target])
    try:
        resolver = _resolver(name)
        found = await (_services(resolver, name.host) if name.kind == "srv" else _addresses(resolver, name.host, name.port))
    except (dns.exception.DNSException, OSError) as error:
        raise LookupFailed(f"DNS has no answer for {name.host}: {type(error).__name__}") from None
    if len(found) > MAX_ADDRESSES:
        raise LookupFailed(f"DNS has {len(found)} addresses for {name.host}, the limit is {MAX_ADDRESSES}")
    return found


def _resolver(name: PeerName) -> dns.asyncresolver.Resolver:
    resolver = dns.asyncresolver.Resolver(configure=name.server is None)
    if name.server is not None:
        resolver.nameservers = [name.server.address]
        resolver.port = name.server.port
    resolver.lifetime = _TIMEOUT_S
    return resolver


async def _addresses(resolver: dns.asyncresolver.Resolver, host: str, port: int) -> frozenset[str]:
    try:
        answer = await resolver.resolve(host, dns.rdatatype.A, search=True)
    except dns.resolver.NoAnswer:
        answer = await resolver.resolve(host, dns.rdatatype.AAAA, search=True)
    return frozenset(address_of(record.address, port) for record in answer)


async def _services(resolver: dns.asyncresolver.Resolver, name: str) -> frozenset[str]:
    answer = await resolver.resolve(name, dns.rdatatype.SRV, search=True)
    places = sorted({(str(record.target), int(record.port)) for record in answer})[: MAX_ADDRESSES + 1]
    found = await asyncio.gather(*(_addresses(resolver, host, port) for host, port in places))
    return frozenset().union(*found)
