"""Who is found is told once and kept while DNS fails; a peer that was lost is looked for at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fakes.gateway_fleet import eventually
from triserve.rpc.dns_lookup import LookupFailed
from triserve.rpc.peer_finder import PeerFinder
from triserve.rpc.peer_names import PeerName, parse_peer_names


class Dns:
    """Knows what a test tells it; None = it fails."""

    def __init__(self, **known: set[str] | None) -> None:
        self.known = known
        self.asked = 0

    async def __call__(self, name: PeerName) -> frozenset[str]:
        self.asked += 1
        found = self.known[name.host]
        if found is None:
            raise LookupFailed(f"nothing about {name.host}")
        return frozenset(found)


@asynccontextmanager
async def finding(dns: Dns, *names: str, interval_s: float = 0.001) -> AsyncIterator[tuple[PeerFinder, list[tuple[str, ...]]]]:
    """A finder, and what it has told so far."""
    told: list[tuple[str, ...]] = []
    finder = PeerFinder(parse_peer_names(names), interval_s=interval_s, on_found=told.append, look_up=dns)
    finder.start()
    try:
        yield finder, told
    finally:
        await finder.close()


async def test_addresses_need_no_lookup_and_keep_their_order() -> None:
    dns = Dns()
    async with finding(dns, "b:1", "a:1") as (_, told):
        await asyncio.sleep(0)
        assert told == [("b:1", "a:1")] and not dns.asked


async def test_who_comes_and_goes_is_told_once() -> None:
    dns = Dns(x={"10.0.0.1:1"})
    async with finding(dns, "dns:///x:1") as (_, told):
        await eventually(lambda: told == [(), ("10.0.0.1:1",)])
        dns.known["x"] = {"10.0.0.2:1", "10.0.0.1:1"}
        await eventually(lambda: told[-1] == ("10.0.0.1:1", "10.0.0.2:1"))
        seen = dns.asked
        await eventually(lambda: dns.asked > seen + 3)
        dns.known["x"] = {"10.0.0.2:1"}
        await eventually(lambda: told[-1] == ("10.0.0.2:1",))
        assert len(told) == 4


async def test_while_dns_fails_the_last_answer_stays_and_other_names_go_on() -> None:
    dns = Dns(x={"10.0.0.1:1"}, y={"10.0.1.1:1"})
    async with finding(dns, "dns:///x:1", "dns:///y:1", "z:1") as (finder, told):
        await eventually(lambda: told[-1] == ("z:1", "10.0.0.1:1", "10.0.1.1:1"))
        dns.known["x"] = None
        await eventually(lambda: finder.failures > 2)
        dns.known["y"] = {"10.0.1.2:1"}
        await eventually(lambda: told[-1] == ("z:1", "10.0.0.1:1", "10.0.1.2:1"))
        dns.known["x"] = {"10.0.0.9:1"}
        await eventually(lambda: told[-1] == ("z:1", "10.0.0.9:1", "10.0.1.2:1"))


async def test_a_peer_that_was_lost_is_looked_for_before_the_interval_is_over() -> None:
    dns = Dns(x={"10.0.0.1:1"})
    async with finding(dns, "dns:///x:1", interval_s=3600.0) as (finder, told):
        await eventually(lambda: told[-1] == ("10.0.0.1:1",))
        dns.known["x"] = {"10.0.0.2:1"}
        finder.look_now()
        await eventually(lambda: told[-1] == ("10.0.0.2:1",))


async def test_a_lookup_that_breaks_is_not_the_last_one() -> None:
    dns = Dns()
    async with finding(dns, "dns:///x:1") as (finder, told):
        # The test's DNS knows no such name, and breaks.
        await eventually(lambda: finder.failures > 2)
        dns.known["x"] = {"10.0.0.1:1"}
        await eventually(lambda: told[-1] == ("10.0.0.1:1",))
