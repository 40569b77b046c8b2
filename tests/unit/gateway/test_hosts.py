"""Without keys, only names of this machine are answered to, however they are written."""

from __future__ import annotations

import socket

import pytest

from gateway.hosts import AllowedHosts

HOSTS = AllowedHosts.of("gpu-box:8000", ("chat.example.org",))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST:8000",
        "localhost.",
        "api.localhost:1",
        "127.0.0.1",
        "127.0.0.1:8000",
        "192.168.0.7:8000",
        "[::1]:8000",
        "[::1]",
        "gpu-box:8000",
        "chat.example.org",
        "Chat.Example.org:443",
        socket.gethostname(),
        "",
    ],
)
def test_names_of_this_machine_addresses_and_what_the_operator_adds_are_answered(host: str) -> None:
    assert HOSTS.allows(host)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.evil.example",
        "[evil]:8000",
        "a:b:c",
        "x/health",
        ":8000",
    ],
)
def test_any_other_name_is_not(host: str) -> None:
    assert not HOSTS.allows(host)


def test_a_star_and_keys_allow_any() -> None:
    assert AllowedHosts.of("127.0.0.1:8000", ("*",)).allows("evil.example")
    assert AllowedHosts.anybody().allows("evil.example")
