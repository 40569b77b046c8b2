"""Builds, runs and drains a stage's gRPC server, the same way in every service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings

from triserve.rpc import garbage
from triserve.rpc.channel import KEEPALIVE_MS, MAX_MESSAGE_BYTES, PING_TIMEOUT_MS
from triserve.rpc.interceptors import ErrorInterceptor
from triserve.rpc.metrics_server import MetricsServer, RefusedCollector
from triserve.rpc.telemetry import configure_logging
from triserve.rpc.tls.allowed_clients import AllowedClients
from triserve.rpc.tls.ends import ServerTls
from triserve.rpc.tls.handshakes import Handshakes
from triserve.rpc.tls.loopback import is_loopback
from triserve.rpc.traces.choice import NoOpenTelemetry, open_queue
from triserve.rpc.traces.span_queue import SpanCollector, SpanQueue
from triserve.rpc.traces.spans import Tracer
from triserve.rpc.variables import unknown_variables

logger = logging.getLogger(__name__)

# The server must tolerate the channels' pings during a long silent prefill; the option's name is exactly this one.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_concurrent_streams", 4096),
    ("grpc.max_metadata_size", 16 * 1024),
)

S = TypeVar("S", bound=BaseSettings)

# For a connection to get past TLS; many times what a busy machine takes.
HANDSHAKE_TIMEOUT_S = 10.0
# A peer hears within a round trip that a process leaves.
_LAST_ARRIVALS_S = 0.25
# For spans that wait when a process leaves.
_LAST_SPANS_S = 2.0


class Health:
    """Readiness of the services of one server: "" is alive, a service's full name is ready.

    Args:
        services: full names, all NOT_SERVING until `set_ready`.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._services = tuple(services)
        self._servicer = health_aio.HealthServicer()
        self._ready: bool | None = None

    @property
    def ready(self) -> bool:
        """What the services answer."""
        return bool(self._ready)

    async def start(self) -> None:
        """Answers alive and not ready."""
        await self._servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await self.set_ready(False)

    async def set_ready(self, ready: bool) -> None:
        """Changes what all services of the server answer; watchers are told at once."""
        if ready == self._ready:
            return
        self._ready = ready
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self._servicer.set(service, status)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers grpc.health.v1 on a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)


class ServiceServer:
    """A grpc.aio server with health, reflection, limits and typed errors.

    Args:
        services: full names of the services that `register` adds.
        register: adds the servicers to the server.
        listen: "host:port"; port 0 picks a free one.
        max_receive_bytes: of one message; a longer one is refused before it is parsed.
        tls: with which certificate, and who may call; None = in plain text, and whoever can connect may.
        handshake_timeout_s: for a connection to get past TLS.
        reuse_port: whether other processes of the same user may listen there, too.
    """

    def __init__(
        self,
        services: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        listen: str,
        *,
        max_receive_bytes: int = MAX_MESSAGE_BYTES,
        tls: ServerTls | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        reuse_port: bool = False,
    ) -> None:
        self.health = Health(services)
        self._listen = listen
        self._tls = tls
        self._handshakes = Handshakes(handshake_timeout_s, lambda: self.port)
        self._clients = AllowedClients(tls.clients if tls is not None else None, on_connection=self._handshakes.complete)
        options = (
            *SERVER_OPTIONS,
            ("grpc.so_reuseport", int(reuse_port)),
            ("grpc.max_receive_message_length", max_receive_bytes),
            ("grpc.server_handshake_timeout_ms", int(1000 * handshake_timeout_s)),
        )
        self._server = grpc.aio.server(interceptors=[ErrorInterceptor(), *([self._clients] if tls is not None else [])], options=options)
        register(self._server)
        self.health.add_to(self._server)
        reflection.enable_server_reflection(
            (*services, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME), self._server
        )
        if tls is None:
            self.port = self._server.add_insecure_port(listen)
        else:
            self.port = self._server.add_secure_port(listen, tls.credentials(self._handshakes.begin))

    @property
    def refused_peers(self) -> int:
        """Calls of clients whose certificate is good and whose name is not one that is let in."""
        return self._clients.refused

    @property
    def refused_handshakes(self) -> int:
        """Connections that did not get past TLS."""
        return self._handshakes.refused

    def tell(self, registry: CollectorRegistry) -> None:
        """Has Prometheus told of who was refused."""
        registry.register(RefusedCollector(peers=lambda: self.refused_peers, handshakes=lambda: self.refused_handshakes))

    async def start(self) -> None:
        """Listens, alive and not ready."""
        await self.health.start()
        await self._server.start()
        if self._tls is not None:
            self._handshakes.start()
        else:
            warn_of_plain_text(self._listen)

    async def leave(self, *, has_peers: bool) -> None:
        """Tells the peers that nothing new is taken, and waits a moment for what they sent before they heard it: none of it needs to be refused."""
        await self.health.set_ready(False)
        if has_peers:
            await asyncio.sleep(_LAST_ARRIVALS_S)

    async def stop(self, grace_s: float) -> None:
        """Takes no new call, gives those under way `grace_s` seconds, then ends them."""
        await self.health.set_ready(False)
        await self._handshakes.close()
        await self._server.stop(grace_s)


def warn_of_plain_text(listen: str) -> None:
    """Says loudly where anybody on the network could read and call."""
    if not is_loopback(listen):
        logger.warning("LISTENING ON %s WITHOUT TLS: whoever reaches it can call this service, and whoever is on the way can read", listen)


class Readiness(Protocol):
    """Whether a service takes requests."""

    @property
    def ready(self) -> bool:
        """Now."""


class Service(Protocol):
    """A running service, as `run_service` needs it."""

    @property
    def registry(self) -> CollectorRegistry:
        """What it tells Prometheus."""

    @property
    def health(self) -> Readiness:
        """Whether it takes requests."""

    async def start(self) -> None:
        """Brings the service up; returns when it is listening."""

    async def stop(self) -> None:
        """Drains and takes the service down."""


def _on_stop_signal(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _serve(service: Service, failed: Callable[[], Coroutine[Any, Any, None]] | None) -> None:
    stop = asyncio.Event()
    # Before the start, so that a signal in its midst drains too.
    _on_stop_signal(stop)
    async with AsyncExitStack() as stack:
        await service.start()
        stack.push_async_callback(service.stop)
        garbage.settle()
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stop.wait())]
        if failed is not None:
            waits.append(asyncio.ensure_future(failed()))
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            task.result()


def run_service(name: str, settings_class: type[S], make: Callable[[S, Tracer | None], Service]) -> None:
    """Main of every service: settings, logs, event loop, serve until SIGTERM, drain.

    A service that has a coroutine method `failed` is watched: the process leaves with that coroutine's exception.

    Args:
        name: for the log lines.
        settings_class: the service's settings; a bad value ends the process with status 2 and a line that names the variable.
        make: builds the service, called in the event loop; without a tracer nothing is traced.
    """
    settings = load_settings(settings_class)
    spans = _open_spans(name, settings)
    tracer = Tracer(spans.put) if spans is not None else None
    as_json = getattr(settings, "log_format", "text") == "json"
    configure_logging(name, as_json=as_json, trace_id_of=tracer.trace_id_of if tracer is not None else None)
    metrics_listen = getattr(settings, "metrics_listen", None)

    async def main() -> None:
        service = make(settings, tracer)
        if spans is not None:
            service.registry.register(SpanCollector(spans))
        if metrics_listen is None:
            await _serve(service, getattr(service, "failed", None))
            return
        reuse_port = getattr(settings, "reuse_port", False)
        server = MetricsServer(metrics_listen, service.registry, is_ready=lambda: service.health.ready, reuse_port=reuse_port)
        logger.info("metrics on port %d", server.port)
        try:
            await _serve(service, getattr(service, "failed", None))
        finally:
            await asyncio.to_thread(server.close)

    try:
        uvloop.run(main())
    finally:
        if spans is not None:
            spans.close(_LAST_SPANS_S)


def _open_spans(name: str, settings: BaseSettings) -> SpanQueue | None:
    """Where spans go; None = nowhere. Ends the process if they are to go where nothing installed can take them."""
    endpoint = getattr(settings, "otlp_endpoint", None)
    # Where there are several workers, each has spans of its own, and this process none.
    if endpoint is None or getattr(settings, "workers", 1) > 1:
        return None
    try:
        return open_queue(name, endpoint, variable=f"{settings.model_config.get('env_prefix', '')}OTLP_ENDPOINT")
    except NoOpenTelemetry as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def load_settings(settings_class: type[S]) -> S:
    """Reads settings from the environment, or ends the process naming each variable that is wrong or no setting at all."""
    prefix = settings_class.model_config.get("env_prefix", "")
    known = {f"{prefix}{name}".upper() for name in settings_class.model_fields}
    # Not to read a setting, but to find what none of them reads.
    environment = os.environ  # noqa: TID251
    if unknown := unknown_variables(environment, prefix=prefix.upper(), known=known):
        sys.stderr.write("".join(f"{line}\n" for line in unknown))
        raise SystemExit(2)
    try:
        return settings_class()
    except ValidationError as error:
        for item in error.errors():
            sys.stderr.write(f"{_shown(settings_class, item)}{item['msg']}\n")
        raise SystemExit(2) from None


def _shown(settings_class: type[BaseSettings], error: ErrorDetails) -> str:
    """The variable that is wrong and what it is, unless that is a secret; nothing where several are wrong together, since secrets may be among them."""
    if not error["loc"]:
        return ""
    prefix = settings_class.model_config.get("env_prefix", "")
    variable = f"{prefix}{'_'.join(str(part) for part in error['loc'])}".upper()
    field = settings_class.model_fields.get(str(error["loc"][0]))
    is_secret = field is not None and "Secret" in str(field.annotation)
    return f"{variable}: " if is_secret else f"{variable}={error.get('input')!r}: "
