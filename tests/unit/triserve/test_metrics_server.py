"""The port for those who watch: it tells what the event loop knows, finds a loop that hangs, and is harmed by no client."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest
from prometheus_client import Counter

from triserve.rpc import metrics_server
from triserve.rpc.metrics_server import MetricsServer, new_registry


@contextmanager
def serving(*, is_ready: bool = True) -> Iterator[tuple[MetricsServer, str]]:
    """A server, and its URL."""
    registry = new_registry("tokenizer", "1.2.3")
    Counter("triserve_things", "Things", registry=registry).inc(3)
    server = MetricsServer("127.0.0.1:0", registry, is_ready=lambda: is_ready)
    try:
        yield server, f"http://127.0.0.1:{server.port}"
    finally:
        server.close()


async def fetched(url: str, method: str = "GET") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        return response.status, await response.text()


async def test_it_tells_what_was_counted_and_what_runs() -> None:
    with serving() as (_, url):
        status, text = await fetched(f"{url}/metrics")
    assert status == 200 and "triserve_things_total 3.0" in text
    assert 'triserve_build_info{service="tokenizer",version="1.2.3"} 1.0' in text and "process_resident_memory_bytes" in text


@pytest.mark.parametrize(("is_ready", "expected"), [(True, 200), (False, 503)])
async def test_ready_is_what_the_service_says_and_alive_is_neither(is_ready: bool, expected: int) -> None:
    with serving(is_ready=is_ready) as (_, url):
        assert (await fetched(f"{url}/readyz"))[0] == expected
        assert (await fetched(f"{url}/livez"))[0] == 200


async def test_an_event_loop_that_hangs_is_not_alive_and_that_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_LOOP_TIMEOUT_S", 0.05)
    answers: list[bytes] = []

    def ask(port: int) -> None:
        while not (answers and answers[-1].startswith(b"HTTP/1.0 503")):
            answers.append(_says(port))

    with serving() as (server, _):
        asking = threading.Thread(target=ask, args=(server.port,))
        asking.start()
        # The loop does nothing else until it counts as hanging.
        asking.join(20)
        assert answers[-1].startswith(b"HTTP/1.0 503")


async def test_nothing_else_is_answered() -> None:
    with serving() as (_, url):
        assert (await fetched(f"{url}/"))[0] == 404
        assert (await fetched(f"{url}/metrics", "POST"))[0] == 405
        assert (await fetched(f"{url}/metrics/../etc"))[0] == 404


async def test_clients_that_say_nothing_keep_nobody_out_for_long_and_more_than_a_few_are_hung_up_on() -> None:
    with serving() as (server, url):
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(16)]
        one_more = await asyncio.to_thread(_says, server.port)
        assert one_more == b""
        for client in silent:
            client.close()
        async with asyncio.timeout(10):
            while await asyncio.to_thread(_says, server.port) == b"":
                pass
        assert (await fetched(f"{url}/livez"))[0] == 200


async def test_an_address_that_is_taken_is_named() -> None:
    with serving() as (server, _), pytest.raises(OSError, match=rf"127\.0\.0\.1:{server.port}"):
        MetricsServer(f"127.0.0.1:{server.port}", new_registry("x", "1"), is_ready=bool)


def _says(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as client:
        try:
            client.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            return client.recv(4096)
        except OSError:
            return b""
