"""The gateway as a running service: builds its parts, serves HTTP and gRPC, drains."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
from aiohttp import web
from prometheus_client import CollectorRegistry

from gateway.auth import ApiKeys, LiveKeys
from gateway.chat_service import SERVICE_NAME, ChatServicer
from gateway.clients.fleet import Fleet, FleetTls
from gateway.clients.replica_choice import ChoicePolicy, LeastLoad, LeastWork, Random
from gateway.context import Gateway
from gateway.flow.admission import Admission
from gateway.flow.answer_cache import AnswerCache
from gateway.flow.answer_forms import AnswerForms
from gateway.flow.pipeline import Pipeline
from gateway.flow.shares import Shares
from gateway.hosts import AllowedHosts
from gateway.http.app import make_app
from gateway.http.bodies import BodyReader
from gateway.http.cors import Cors
from gateway.http.server import HttpServer
from gateway.metrics import Metrics, StateCollector
from gateway.settings import Settings
from gateway.traces import RequestTraces
from prompt_cache import PromptCache
from prompt_cache.flights import Flights
from triserve.rpc.errors import Unavailable
from triserve.rpc.metrics_server import RefusedCollector
from triserve.rpc.peer_names import parse_peer_names
from triserve.rpc.server import Health, ServiceServer
from triserve.rpc.tls.ends import ClientTls, OwnCertificate, ServerTls
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import chat_pb2_grpc

# Packages of an extra, which a gateway without a semantic cache does without.
if TYPE_CHECKING:
    from prompt_cache.semantic.semantic_cache import SemanticCache

logger = logging.getLogger(__name__)

# For answers that were told to end, to say so to their clients.
_LAST_WORDS_S = 1.0
_LAG_INTERVAL_S = 0.25
_MESSAGE_SLACK_BYTES = 64 * 1024
_POLICIES: dict[str, Callable[[], ChoicePolicy]] = {"prefix": LeastWork, "least-load": LeastLoad, "random": Random}


class NoEmbedder(Exception):
    """The semantic cache's embedder cannot be had; the message says why and what to do."""


class GatewayService:
    """One gateway process.

    Args:
        settings: of the process.
        tracer: records spans; None = nothing is traced.

    Raises:
        BadKeysFile: the file of API keys cannot be read.
        CannotListen: an address cannot be listened on.
        NoEmbedder: there is to be a semantic cache, and no embedder can be had.
    """

    def __init__(self, settings: Settings, tracer: Tracer | None = None) -> None:
        self._settings = settings
        self._keys = LiveKeys(settings.api_keys_file, on_change=self._share)
        door = settings.http_tls_files()
        self._http = HttpServer(settings.listen, door, idle_timeout_s=settings.idle_timeout_s, reuse_port=settings.reuse_port)
        metrics = Metrics(settings.model_name)
        self._cache = PromptCache(settings.cache_config()) if settings.cache else None
        self._fleet = self._make_fleet(metrics)
        limits, names = settings.limits(), settings.names()
        shared = self._keys.current().num_tenants > 1
        self._admission = Admission(settings.max_active_requests, shared=shared)
        self._budget = Shares(settings.max_bodies_bytes, noun="bytes of bodies", least=settings.max_body_bytes, shared=shared)
        self._bodies = BodyReader(limits, self._budget)
        self._semantic = _semantic_cache(settings, self._cache)
        self._shared = self._cache.share_flights() if self._cache is not None else None
        self._pipeline = Pipeline(
            fleet=self._fleet,
            cache=_answer_cache(settings, self._cache, self._semantic, metrics),
            flights=Flights(self._shared),
            names=names,
            limits=limits,
            metrics=metrics,
            forms=AnswerForms(tool_parser=settings.tool_parser, reasoning_parser=settings.reasoning_parser),
        )
        self.gateway = Gateway(
            pipeline=self._pipeline,
            fleet=self._fleet,
            admission=self._admission,
            bodies=self._bodies,
            keys=self._keys,
            hosts=AllowedHosts.anybody()
            if settings.api_keys_file is not None
            else AllowedHosts.of(settings.listen, settings.allowed_hosts),
            cors=Cors(settings.cors_origins),
            names=names,
            limits=limits,
            metrics=metrics,
            traces=_request_traces(settings, tracer),
            started_at=int(time.time()),
        )
        # Without cancellation a handler would not notice that its client is gone.
        self._runner = web.AppRunner(make_app(self.gateway), handler_cancellation=True, shutdown_timeout=_LAST_WORDS_S)
        self._grpc = ServiceServer(
            [SERVICE_NAME],
            lambda server: _add(ChatServicer(self.gateway), server),
            settings.grpc_listen,
            # What is a little above the limit is refused by our own words.
            max_receive_bytes=settings.max_body_bytes + _MESSAGE_SLACK_BYTES,
            tls=ServerTls(OwnCertificate(door), clients=None) if door is not None else None,
            reuse_port=settings.reuse_port,
        )
        self._tell_state()
        self._readiness: asyncio.Task[None] | None = None
        self._lag: asyncio.Task[None] | None = None

    def _make_fleet(self, metrics: Metrics) -> Fleet:
        settings = self._settings
        return Fleet(
            parse_peer_names(settings.tokenizers),
            parse_peer_names(settings.computes),
            dns_interval_s=settings.dns_interval_s,
            gateway_name=f"gateway {socket.gethostname()}:{self.port}",
            policy=_POLICIES[settings.routing](),
            on_change=self._schedule_readiness,
            on_stale=metrics.stale_deltas.inc,
            on_retry=lambda stage: metrics.retries.labels(stage).inc(),
            retry_wait_s=settings.retry_wait_s,
            prefix_index_bytes=settings.prefix_index_bytes if settings.routing == "prefix" else 0,
            tls=_fleet_tls(settings),
        )

    def _tell_state(self) -> None:
        """Has metrics tell what is looked up when somebody asks."""
        cache, http, clients, budget = self._cache, self._http, self._grpc, self._budget
        self.registry.register(
            StateCollector(
                self._fleet,
                active=lambda: self._admission.active,
                body_bytes=lambda: budget.used,
                cache_stats=(lambda: cache.stats) if cache is not None else None,
                semantic=self._semantic,
            )
        )
        self.registry.register(
            RefusedCollector(peers=lambda: clients.refused_peers, handshakes=lambda: clients.refused_handshakes + http.refused_handshakes)
        )

    @property
    def registry(self) -> CollectorRegistry:
        """What it tells Prometheus."""
        return self.gateway.metrics.registry

    @property
    def health(self) -> Health:
        """Whether it takes requests."""
        return self._grpc.health

    @property
    def port(self) -> int:
        """Where HTTP is served."""
        return self._http.port

    @property
    def grpc_port(self) -> int:
        """Where gRPC is served."""
        return self._grpc.port

    @property
    def num_connections(self) -> int:
        """Connections of HTTP clients."""
        return len(self._runner.server.connections) if self._runner.server is not None else 0

    async def start(self) -> None:
        """Listens; ready as soon as each stage is."""
        if self._cache is not None:
            await self._cache.start()
        if self._shared is not None:
            await self._shared.start()
        if self._semantic is not None:
            await self._semantic.start()
        await self._grpc.start()
        self._lag = asyncio.create_task(self._measure_lag(), name="loop-lag")
        self._fleet.start()
        await self._runner.setup()
        assert self._runner.server is not None, "the runner is set up"
        await self._http.start(self._runner.server)
        logger.info("HTTP on port %d, gRPC on port %d", self.port, self.grpc_port)

    async def stop(self) -> None:
        """Admits nothing more, lets what is under way end for a while, ends the rest with an error, and takes the servers down."""
        leaving = Unavailable("this gateway is shutting down")
        if self._lag is not None:
            self._lag.cancel()
        self._admission.close(leaving)
        await self._set_readiness()
        if not await self._admission.wait_idle(self._settings.drain_timeout_s):
            logger.warning("%d answers are ended after %g s", self._admission.active, self._settings.drain_timeout_s)
            self._pipeline.abort_all(leaving)
            await self._admission.wait_idle(_LAST_WORDS_S)
        await self._http.close()
        await self._runner.cleanup()
        self._bodies.close()
        await self._grpc.stop(_LAST_WORDS_S)
        await self._fleet.close()
        if self._readiness is not None:
            await self._readiness
        if self._shared is not None:
            await self._shared.close()
        if self._semantic is not None:
            await self._semantic.close()
        if self._cache is not None:
            await self._cache.close()

    def _share(self, keys: ApiKeys) -> None:
        """Another file of keys: whether there is somebody to leave a part to."""
        shared = keys.num_tenants > 1
        self._admission.set_shared(shared)
        self._budget.set_shared(shared)

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_INTERVAL_S
            await asyncio.sleep(_LAG_INTERVAL_S)
            self.gateway.metrics.loop_lag.observe(max(0.0, loop.time() - due))

    def _schedule_readiness(self) -> None:
        if self._readiness is None or self._readiness.done():
            self._readiness = asyncio.create_task(self._set_readiness(), name="readiness")

    async def _set_readiness(self) -> None:
        # Again, as long as it changes while it is told.
        while True:
            ready = self._fleet.ready and not self._admission.closed
            await self._grpc.health.set_ready(ready)
            if ready == (self._fleet.ready and not self._admission.closed):
                return


def _request_traces(settings: Settings, tracer: Tracer | None) -> RequestTraces | None:
    if tracer is None:
        return None
    return RequestTraces(tracer, ratio=settings.trace_sample_ratio, client_limit_per_s=settings.trace_client_limit_per_s)


def _fleet_tls(settings: Settings) -> FleetTls | None:
    files = settings.stage_tls_files()
    if files is None:
        return None
    own = OwnCertificate(files)
    return FleetTls(ClientTls(own, settings.tls_tokenizer_name), ClientTls(own, settings.tls_compute_name))


def _answer_cache(settings: Settings, cache: PromptCache | None, semantic: SemanticCache | None, metrics: Metrics) -> AnswerCache | None:
    """None where there is no prompt cache."""
    if cache is None:
        return None
    return AnswerCache(
        cache,
        semantic,
        settings.model_name,
        similar_sampled=settings.semantic_sampled,
        not_kept=lambda reason: metrics.not_kept.labels(reason).inc(),
    )


def _semantic_cache(settings: Settings, cache: PromptCache | None) -> SemanticCache | None:
    """None where there is to be none.

    Raises:
        NoEmbedder: see there.
    """
    if settings.semantic_cache == "off" or cache is None:
        return None
    try:
        # Of an extra, which a gateway without a semantic cache does without.
        from gateway.semantic_parts import EmbedderRefused, make_semantic_cache  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise NoEmbedder(
            f"GATEWAY_SEMANTIC_CACHE={settings.semantic_cache}: {error.name} is not installed: pip install 'triserve[semantic]'"
        ) from None
    try:
        return make_semantic_cache(settings, cache)
    except (EmbedderRefused, ValueError) as error:
        raise NoEmbedder(f"GATEWAY_EMBEDDER: {error}") from error


def _add(servicer: ChatServicer, server: grpc.aio.Server) -> None:
    add: Any = chat_pb2_grpc.add_ChatServiceServicer_to_server
    add(servicer, server)
