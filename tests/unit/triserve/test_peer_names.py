"""What an operator writes for a stage's processes is understood as it is meant, or refused by name."""

from __future__ import annotations

import pytest

from triserve.rpc.peer_names import NameServer, PeerName, parse_peer_name, parse_peer_names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("127.0.0.1:7200", PeerName("address", "127.0.0.1", 7200)),
        ("tokenizer-0.tokenizer:7200", PeerName("address", "tokenizer-0.tokenizer", 7200)),
        ("[::1]:7200", PeerName("address", "::1", 7200)),
        ("dns:///tokenizer:7200", PeerName("dns", "tokenizer", 7200)),
        ("dns:///tokenizer.triserve.svc.cluster.local.:1", PeerName("dns", "tokenizer.triserve.svc.cluster.local.", 1)),
        ("dns://10.0.0.10/tokenizer:7200", PeerName("dns", "tokenizer", 7200, NameServer("10.0.0.10", 53))),
        ("dns://10.0.0.10:5353/tokenizer:7200", PeerName("dns", "tokenizer", 7200, NameServer("10.0.0.10", 5353))),
        ("dns://[fd00::a]:5353/tokenizer:7200", PeerName("dns", "tokenizer", 7200, NameServer("fd00::a", 5353))),
        ("srv:///_grpc._tcp.compute", PeerName("srv", "_grpc._tcp.compute", 0)),
    ],
)
def test_a_name_is_read(text: str, name: PeerName) -> None:
    assert parse_peer_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tokenizer",
        "tokenizer:",
        ":7200",
        "tokenizer:0",
        "tokenizer:65536",
        "tokenizer:７２",  # noqa: RUF001 - digits of another script
        "to kenizer:7200",
        "-x:7200",
        "a" * 64 + ":7200",
        "dns:tokenizer:7200",
        "dns://tokenizer:7200",
        "dns:///tokenizer",
        "dns:///10.0.0.1:7200",
        "dns://nameserver:53/tokenizer:7200",
        "srv:///compute:7300",
        "http://tokenizer:7200",
        "unix:/run/x",
    ],
)
def test_what_is_no_name_is_refused_and_shown(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_peer_name(text)
    assert repr(text) in str(caught.value)


def test_a_name_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        parse_peer_names(["a:1", "b:1", "a:1"])


def test_addresses_are_as_grpc_takes_them() -> None:
    assert [parse_peer_name(text).target for text in ("[::1]:7200", "a:1")] == ["[::1]:7200", "a:1"]
