"""What gRPC says of connections that do not come about, as it was seen to say it, and what the log says then."""

from __future__ import annotations

import grpc
import pytest

from triserve.rpc.tls.failures import why_not_connected

FAILED = "failed to connect to all addresses; last error: "
HANDSHAKE = "UNKNOWN: ipv4:127.0.0.1:7200: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:"


def error(details: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)


HANG_UPS = [
    "UNAVAILABLE: ipv4:127.0.0.1:7200: Socket closed",
    "UNAVAILABLE: ipv6:%5B::1%5D:7200: Socket closed",
    "UNAVAILABLE: ipv4:127.0.0.1:7200: Handshake read failed (Endpoint closing)",
    "UNKNOWN: ipv4:127.0.0.1:7200: recvmsg:Connection reset by peer",
    "UNKNOWN: ipv4:127.0.0.1:7200: sendmsg: Broken pipe (32)",
]


@pytest.mark.parametrize("words", HANG_UPS)
def test_a_connection_that_the_peer_ends_is_named_alike_at_whatever_moment(words: str) -> None:
    assert why_not_connected(error(FAILED + words), server_name="sampler") == (
        "it closed the connection in the handshake, as one does that refuses our certificate, or speaks no TLS"
    )
    assert why_not_connected(error(FAILED + words), server_name=None) == (
        "it closed the connection at once, as one does that speaks TLS and is spoken to without"
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (f"{HANDSHAKE}CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "its certificate is refused: certificate has expired"),
        (f"{HANDSHAKE}CERTIFICATE_VERIFY_FAILED", "its certificate is refused: it is not of our CA"),
        (f"{HANDSHAKE}WRONG_VERSION_NUMBER: Invalid certificate verification context: OK", "it speaks no TLS"),
        (
            "UNKNOWN: ipv4:127.0.0.1:7200: Custom verification check failed with error: UNAUTHENTICATED: Hostname Verification Check failed.",
            "its certificate is not of sampler",
        ),
        ("UNKNOWN: ipv4:127.0.0.1:7200: Tls handshake failed (SOMETHING)", "Tls handshake failed (SOMETHING)"),
        ("UNKNOWN: ipv4:127.0.0.1:7200: Handshake took too long", "Handshake took too long"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_named(words: str, why: str) -> None:
    assert why_not_connected(error(FAILED + words), server_name="sampler") == why


@pytest.mark.parametrize("words", ["", "Socket closed", f"{FAILED}UNKNOWN: ipv4:127.0.0.1:7200: connect: Connection refused (111)"])
@pytest.mark.parametrize("server_name", ["sampler", None])
def test_what_has_nothing_to_do_with_tls_has_no_words_of_it(words: str, server_name: str | None) -> None:
    assert why_not_connected(error(words), server_name=server_name) == ""


def test_a_peer_that_answers_with_an_error_was_connected() -> None:
    assert why_not_connected(error(f"{FAILED}{HANG_UPS[0]}", grpc.StatusCode.INTERNAL), server_name="sampler") == ""
