"""Names are looked up in a real DNS, and no answer says nothing of the processes."""

from __future__ import annotations

import pytest

from tests.fakes.dns_server import DnsServer, dns_server
from triserve.rpc import dns_lookup
from triserve.rpc.dns_lookup import LookupFailed, look_up
from triserve.rpc.peer_names import parse_peer_name


async def _found(server: DnsServer, text: str) -> frozenset[str]:
    return await look_up(parse_peer_name(text.replace("://", f"://{server.authority}")))


async def test_every_record_of_a_name_is_an_address() -> None:
    async with dns_server() as server:
        server.records["x.test", "A"] = ["10.0.0.1", "10.0.0.2"]
        assert await _found(server, "dns:///x.test:7200") == {"10.0.0.1:7200", "10.0.0.2:7200"}


async def test_as_many_as_a_large_deployment_has() -> None:
    async with dns_server() as server:
        server.records["x.test", "A"] = [f"10.0.0.{number}" for number in range(60)]
        assert len(await _found(server, "dns:///x.test:1")) == 60


async def test_ipv6_is_taken_where_there_is_nothing_else_and_a_dual_stack_pod_is_one_peer() -> None:
    async with dns_server() as server:
        server.records["six.test", "AAAA"] = ["fd00::1", "fd00::2"]
        server.records["both.test", "A"] = ["10.0.0.1"]
        server.records["both.test", "AAAA"] = ["fd00::1"]
        assert await _found(server, "dns:///six.test:7200") == {"[fd00::1]:7200", "[fd00::2]:7200"}
        assert await _found(server, "dns:///both.test:7200") == {"10.0.0.1:7200"}


async def test_a_service_s_records_have_the_ports() -> None:
    async with dns_server() as server:
        server.records["_grpc._tcp.x.test", "SRV"] = ["0 10 7300 a.x.test.", "0 10 7301 b.x.test."]
        server.records["a.x.test", "A"] = ["10.0.0.1"]
        server.records["b.x.test", "A"] = ["10.0.0.2"]
        assert await _found(server, "srv:///_grpc._tcp.x.test") == {"10.0.0.1:7300", "10.0.0.2:7301"}


async def test_no_name_no_record_an_error_and_silence_are_failures_that_name_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lookup, "_TIMEOUT_S", 0.05)
    async with dns_server() as server:
        server.records["other.test", "TXT"] = ["x"]
        for name, mood in (("x.test", "well"), ("other.test", "well"), ("x.test", "failing"), ("x.test", "silent")):
            server.mood = mood  # type: ignore[assignment]
            with pytest.raises(LookupFailed, match=name):
                await _found(server, f"dns:///{name}:1")


async def test_more_addresses_than_any_stage_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_lookup, "MAX_ADDRESSES", 2)
    async with dns_server() as server:
        server.records["x.test", "A"] = [f"10.0.0.{number}" for number in range(3)]
        with pytest.raises(LookupFailed, match="the limit is 2"):
            await _found(server, "dns:///x.test:1")
