"""Free ports are free and different; a taken one is named."""

from __future__ import annotations

import socket

import pytest

from gateway.cli.local.ports import HOST, PortTaken, free_ports, require_free


def test_free_ports_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    for port in ports[:3]:
        socket.create_server((HOST, port)).close()


def test_a_taken_port_is_refused_by_number() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} cannot be used: Address already in use; choose another with --port"):
            require_free(port, option="--port")
    require_free(port, option="--port")
