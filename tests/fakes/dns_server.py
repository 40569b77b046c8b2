"""A DNS server on a free port of this machine: it knows what a test tells it, and can fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class DnsServer(asyncio.DatagramProtocol):
    """Answers from its records.

    Attributes:
        records: Of each name, without a dot at its end, and type: the records as in a zone file.
        mood: "well"; "failing" answers SERVFAIL; "silent" does not answer.
        asked: Names that were asked for.
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.mood: Literal["well", "failing", "silent"] = "well"
        self.asked: list[str] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport | None = None

    @property
    def authority(self) -> str:
        """As names say who is to be asked."""
        return f"127.0.0.1:{self.port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Notes where to answer."""
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        """Answers one question."""
        query = dns.message.from_wire(data)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True)
        self.asked.append(name)
        if self.mood == "silent":
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        kind = dns.rdatatype.to_text(question.rdtype)
        known = self.records.get((name, kind), [])
        if self.mood == "failing":
            response.set_rcode(dns.rcode.SERVFAIL)
        elif known:
            response.answer.append(dns.rrset.from_text(question.name, 5, "IN", kind, *known))
        elif not any(other == name for other, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        assert self._transport is not None, "it has a transport before it is asked"
        self._transport.sendto(response.to_wire(), addr)


@asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """A server until the context ends."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(DnsServer, local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()
