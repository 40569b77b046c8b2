"""One HTTP port of a process for those who watch it: `/metrics` for Prometheus, `/livez` and `/readyz` for Kubernetes. Never the data port.

It runs in threads of its own and asks the event loop, where everything that is counted lives: a loop that hangs is what `/livez` finds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeoutError
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

# How long the event loop may be busy before it counts as hanging: far above what any of its work takes.
_LOOP_TIMEOUT_S = 10.0
_BEAT_S = 0.5
# A scraper that is slow to ask, or to read.
_CLIENT_TIMEOUT_S = 10.0
_MAX_CLIENTS = 16

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class MetricsServer:
    """The port.

    Args:
        listen: "host:port"; port 0 picks a free one.
        registry: What is told.
        is_ready: Whether the service takes requests; asked in the event loop.
        reuse_port: Whether other processes of the same user may listen there, too.

    Raises:
        OSError: the address cannot be listened on; names it.
    """

    def __init__(self, listen: str, registry: CollectorRegistry, *, is_ready: Callable[[], bool], reuse_port: bool = False) -> None:
        host, _, port = listen.rpartition(":")
        self._registry = registry
        self._is_ready = is_ready
        self._loop = asyncio.get_running_loop()
        try:
            self._server = _Server((host.strip("[]"), int(port)), _Handler, reuse_port=reuse_port)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {listen}: {error.strerror}") from error
        self._server.set_app(self._answer)
        self._beat()
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Listens no more."""
        self._loop.call_soon_threadsafe(self._next_beat.cancel)
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _say(start_response, "405 Method Not Allowed", b"only GET is answered here\n")
        if time.monotonic() > self._beat_at + _LOOP_TIMEOUT_S:
            # At once: who asks waits a second and no longer.
            return _say(start_response, "503 Service Unavailable", b"the event loop hangs\n")
        if environ["PATH_INFO"] == "/livez":
            return _say(start_response, "200 OK", b"alive\n")
        work = {"/metrics": self._told, "/readyz": self._told_ready}.get(environ["PATH_INFO"])
        if work is None:
            return _say(start_response, "404 Not Found", b"there are /metrics, /livez and /readyz\n")
        try:
            body = asyncio.run_coroutine_threadsafe(_in_loop(work), self._loop).result(_LOOP_TIMEOUT_S)
        except (FutureTimeoutError, RuntimeError):
            # The loop is closed, or hangs.
            return _say(start_response, "503 Service Unavailable", b"the event loop does not answer\n")
        if body is None:
            return _say(start_response, "503 Service Unavailable", b"not ready\n")
        kind = CONTENT_TYPE_LATEST if environ["PATH_INFO"] == "/metrics" else "text/plain; charset=utf-8"
        return _say(start_response, "200 OK", body, kind)

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._next_beat = self._loop.call_later(_BEAT_S, self._beat)

    def _told(self) -> bytes:
        return generate_latest(self._registry)

    def _told_ready(self) -> bytes | None:
        return b"ready\n" if self._is_ready() else None


def new_registry(service: str, version: str) -> CollectorRegistry:
    """A registry with what every service tells: its version, and its process's memory, time and files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    Info("triserve_build", "What runs here", registry=registry).info({"service": service, "version": version})
    return registry


class RefusedCollector(Collector):
    """Who was not let in, because of a certificate.

    Args:
        peers: Gives the calls of clients with a good certificate of a name that is not let in.
        handshakes: Gives the connections that did not get past TLS.
    """

    def __init__(self, *, peers: Callable[[], int], handshakes: Callable[[], int]) -> None:
        self._peers = peers
        self._handshakes = handshakes

    def collect(self) -> Iterable[Metric]:
        """The counters as they are."""
        refused = CounterMetricFamily("triserve_tls_refused", "Calls and connections refused because of TLS", labels=("reason",))
        refused.add_metric(("peer",), self._peers())
        refused.add_metric(("handshake",), self._handshakes())
        yield refused


async def _in_loop(work: Callable[[], bytes | None]) -> bytes | None:
    return work()


def _say(start_response: StartResponse, status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> Iterable[bytes]:
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]


class _Handler(WSGIRequestHandler):
    """Logs nothing, and waits for nobody for long."""

    timeout = _CLIENT_TIMEOUT_S

    def log_message(self, *arguments: Any) -> None:
        """Every scrape would be a line."""


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each client, of whom there are few."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any, reuse_port: bool) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CLIENTS)
        self._reuse_port = reuse_port
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Without the name lookup of the base class, which may take seconds."""
        if self._reuse_port:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answers in a thread, or hangs up where there are too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no fault of ours."""
