"""Misspelt variables are found; those that Kubernetes and Docker set beside them are let be."""

from __future__ import annotations

import pytest

from triserve.rpc.variables import unknown_variables

KNOWN = {"GATEWAY_MAX_N", "GATEWAY_LISTEN"}


def unknown(**environment: str) -> list[str]:
    return unknown_variables(environment, prefix="GATEWAY_", known=KNOWN)


def test_a_misspelt_name_is_told_with_the_closest() -> None:
    assert unknown(GATEWAY_MAXN="3", GATEWAY_LISTEN="x", GATEWAY_LISTNE="y", PATH="/bin", GATEWAYS="z") == [
        "GATEWAY_LISTNE is no setting of this service, the closest is GATEWAY_LISTEN",
        "GATEWAY_MAXN is no setting of this service, the closest is GATEWAY_MAX_N",
    ]


def test_a_service_without_settings_has_no_closest() -> None:
    assert unknown_variables({"X_A": "1"}, prefix="X_", known=()) == ["X_A is no setting of this service"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_SERVICE_PORT", "8000"),
        ("GATEWAY_SERVICE_PORT_HTTP", "8000"),
        ("GATEWAY_PORT", "tcp://10.0.0.1:8000"),
        ("GATEWAY_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
        ("GATEWAY_PORT_8000_TCP_ADDR", "10.0.0.1"),
        ("GATEWAY_PORT_8000_TCP_PORT", "8000"),
        ("GATEWAY_PORT_53_UDP_PROTO", "udp"),
        ("GATEWAY_GRPC_PORT", "tcp://10.0.0.1:8001"),
        ("GATEWAY_HEADLESS_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_ENV_PATH", "/bin"),
    ],
)
def test_what_links_between_containers_set_is_let_be(name: str, value: str) -> None:
    assert unknown(**{name: value}) == []


@pytest.mark.parametrize("name", ["GATEWAY_PORT", "GATEWAY_GRPC_PORT", "GATEWAY_PORT_8000"])
def test_a_port_that_is_no_link_is_misspelt(name: str) -> None:
    assert len(unknown(**{name: "8000"})) == 1
