"""What counts as leaving this machine."""

from __future__ import annotations

import pytest

from triserve.rpc.tls.loopback import PlainText, is_loopback, require_no_plain_text


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000",
        "127.9.8.7:0",
        "localhost:8000",
        "LOCALHOST:1",
        "[::1]:8000",
        "[::ffff:127.0.0.1]:80",
        "unix:/run/x.sock",
        "unix:///run/x.sock",
        "dns:///localhost:7200",
        "dns://10.0.0.10:53/localhost:7200",
        "redis://user:pass@127.0.0.1:6379/0",
        "http://localhost/v1",
        "http://[::1]:80/v1",
    ],
)
def test_nobody_else_can_be_there(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:8000",
        "[::]:8000",
        "10.0.0.1:8000",
        "128.0.0.1:1",
        "tokenizer:7200",
        "localhost.example.org:1",
        "dns:///tokenizer:7200",
        "dns://127.0.0.1:53/tokenizer:7200",
        "srv:///_grpc._tcp.compute",
        "redis://127.0.0.1@redis:6379/0",
        "http://example.org/127.0.0.1",
        "[::ffff:10.0.0.1]:80",
    ],
)
def test_somebody_else_may_be_there(address: str) -> None:
    assert not is_loopback(address)


def test_every_way_in_plain_text_is_named_without_a_password() -> None:
    ways = [
        PlainText("A_LISTEN", "127.0.0.1:1", "A_TLS_CERT_FILE"),
        PlainText("A_PEERS", "peer:2", "A_TLS_CERT_FILE"),
        PlainText("A_URL", "redis://user:pa@ss@host/0?password=secret", "rediss://"),
    ]
    with pytest.raises(ValueError) as refused:
        require_no_plain_text("A_REQUIRE_TLS", ways)
    assert str(refused.value) == (
        "A_REQUIRE_TLS refuses plain text: A_PEERS is peer:2, beyond loopback, and is not encrypted without A_TLS_CERT_FILE;"
        " A_URL is redis://host/0, beyond loopback, and is not encrypted without rediss://"
    )


def test_plain_text_on_this_machine_is_no_concern() -> None:
    require_no_plain_text("A_REQUIRE_TLS", [PlainText("A_LISTEN", "localhost:1", "A_TLS_CERT_FILE")])
