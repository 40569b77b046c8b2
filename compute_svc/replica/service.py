"""A compute replica as a running service: loads, serves, tells whether it is ready, drains."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import grpc

from compute_svc.replica.dispatcher import Dispatcher
from compute_svc.replica.engine_client import EngineClient, EngineFailed, EngineLost, Launch, launch_process
from compute_svc.replica.engine_watch import EngineWatch
from compute_svc.replica.kv_watch import KvWatch
from compute_svc.replica.metrics import LoadCollector, PrefillPace, StepMetrics, tell_kv_sizes
from compute_svc.replica.prefix_calls import PrefixCalls
from compute_svc.replica.prefix_servicer import PrefixCacheServicer
from compute_svc.replica.sampler_link import SamplerLink
from compute_svc.replica.servicer import ComputeServicer, ReplicaInfo, load_message
from compute_svc.settings import Settings
from compute_svc.wire.step_output import EngineInfo, Load, PrefixStats, StepOutput
from triserve.rpc.errors import Internal, ServiceError, Unavailable
from triserve.rpc.fingerprint import fingerprint_of
from triserve.rpc.metrics_server import RefusedCollector, new_registry
from triserve.rpc.peer_names import parse_peer_names
from triserve.rpc.peer_set import PeerSet
from triserve.rpc.server import Health, ServiceServer
from triserve.rpc.tls.ends import ClientTls, OwnCertificate, ServerTls
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import compute_pb2, compute_pb2_grpc, sampler_pb2

logger = logging.getLogger(__name__)

SERVICE_NAME = compute_pb2.DESCRIPTOR.services_by_name["ComputeService"].full_name
PREFIX_CACHE_SERVICE_NAME = compute_pb2.DESCRIPTOR.services_by_name["PrefixCacheService"].full_name
_HEARTBEAT_S = 0.1
_LOAD_INTERVAL_S = 0.5
# For what is on its way when all requests have ended.
_LAST_WORDS_S = 1.0


class ComputeService:
    """One compute replica: the process that speaks to the network. The engine, and torch with it, is in a process of its own.

    Args:
        settings: Of the replica.
        tracer: Records spans; None = nothing is traced.
        launch: Starts the engine.
    """

    def __init__(self, settings: Settings, tracer: Tracer | None = None, *, launch: Launch = launch_process) -> None:
        self._settings = settings
        self._tracer = tracer
        self._servicer = ComputeServicer()
        self._engine = EngineClient(self, launch)
        self._engine_watch = EngineWatch(freeze_timeout_s=settings.freeze_timeout_s, step_timeout_s=settings.step_timeout_s)
        self._kv_watch = KvWatch(self._engine.watch)
        self._prefix_servicer = PrefixCacheServicer(self._kv_watch)
        files = settings.tls_files()
        own = OwnCertificate(files) if files is not None else None
        self._sampler_tls = ClientTls(own, settings.tls_sampler_name) if own is not None else None
        tls = ServerTls(own, frozenset(settings.tls_clients)) if own is not None else None
        self._server = ServiceServer([SERVICE_NAME, PREFIX_CACHE_SERVICE_NAME], self._register, settings.listen, tls=tls)
        self._vllm_server = None if settings.vllm_listen is None else self._open_vllm_door(settings.vllm_listen, tls)
        self._fingerprint = fingerprint_of(settings.model)
        self._samplers: PeerSet[SamplerLink] | None = None
        self._dispatcher: Dispatcher | None = None
        self._prefixes: PrefixCalls | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._is_draining = False
        self._started_at_ms = int(time.time() * 1000)
        self.registry = new_registry("compute", version("triserve"))
        self.registry.register(
            RefusedCollector(
                peers=lambda: sum(server.refused_peers for server in self._servers),
                handshakes=lambda: sum(server.refused_handshakes for server in self._servers),
            )
        )
        self._step_metrics = StepMetrics(self.registry)
        self._prefill_pace = PrefillPace()
        self.registry.register(LoadCollector(lambda: self._servicer.load, self._queued_prefill_s, settings.model.name))

    @property
    def health(self) -> Health:
        """Whether it takes requests."""
        return self._server.health

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    @property
    def vllm_port(self) -> int | None:
        """Where it speaks vLLM's engine gRPC; None = nowhere."""
        return None if self._vllm_server is None else self._vllm_server.port

    @property
    def _servers(self) -> list[ServiceServer]:
        return [self._server, *([] if self._vllm_server is None else [self._vllm_server])]

    async def start(self) -> None:
        """Listens, and begins to load the model; ready when that is done and a sampler is there."""
        await self._engine.start(self._settings)
        for server in self._servers:
            await server.start()
        self._heartbeat = asyncio.create_task(self._beat())

    async def failed(self) -> None:
        """Returns never.

        Raises:
            EngineFailed: The engine could not be loaded or has ended.
            Exception: A fault of the service itself.
        """
        assert self._heartbeat is not None, "a service is watched after its start"
        done, _ = await asyncio.wait([self._failure, self._heartbeat], return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            end.result()

    async def stop(self) -> None:
        """Takes no new request, lets those under way end, then takes the service down."""
        self._is_draining = True
        has_peers = self._dispatcher is not None and bool(self._dispatcher.gateways)
        await asyncio.gather(*(server.leave(has_peers=has_peers) for server in self._servers))
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        if self._dispatcher is not None:
            await self._drain(self._dispatcher)
        await asyncio.gather(*(server.stop(_LAST_WORDS_S) for server in self._servers))
        if self._samplers is not None:
            await self._samplers.close()
        await self._engine.stop()

    def on_engine_loaded(self, info: EngineInfo, load: Load) -> None:
        """Serves from now on."""
        settings = self._settings
        self._fingerprint.computation = settings.computation(info.dtype, info.kv_format, info.kernels)
        self._servicer.load = load
        self._dispatcher = Dispatcher(
            self._engine,
            logits_width=info.logits_width,
            hidden_size=info.hidden_size,
            max_request_tokens=info.max_request_tokens,
            max_backlog_bytes=settings.max_backlog_bytes,
            on_samplers_change=self._on_samplers_change,
            tracer=self._tracer,
        )
        self._samplers = self._find_samplers(self._dispatcher, info.logits_width)
        self._samplers.start()
        replica = ReplicaInfo(
            fingerprint=self._fingerprint,
            max_model_len_tokens=info.max_request_tokens,
            logits_width=info.logits_width,
            page_size_tokens=info.page_size_tokens,
            num_pages=info.num_pages,
            max_waiting_requests=info.max_waiting_requests,
            dtype=info.dtype,
            device=settings.device.partition(":")[0],
            policy=settings.policy,
            started_at_ms=self._started_at_ms,
            hidden_size=info.hidden_size,
            kv_format=info.kv_format,
            kv_bytes_per_page=info.kv_bytes_per_page,
        )
        tell_kv_sizes(self.registry, info)
        self._prefixes = PrefixCalls(self._engine, self._dispatcher.next_number)
        self._servicer.open(replica, self._dispatcher)
        self._prefix_servicer.open(info, self._prefixes)
        if self._is_draining:
            error = Unavailable("the replica is shutting down")
            self._dispatcher.refuse(error)
            self._end_prefix_calls(error)

    def _find_samplers(self, dispatcher: Dispatcher, logits_width: int) -> PeerSet[SamplerLink]:
        settings = self._settings
        hello = sampler_pb2.ComputeHello(compute_name=settings.name, fingerprint=self._fingerprint, logits_width=logits_width)

        def make(target: str) -> SamplerLink:
            sampler = SamplerLink(
                target,
                hello,
                dispatcher,
                max_unanswered=settings.max_unanswered_frames,
                answer_timeout_s=settings.sampler_timeout_s,
                tls=self._sampler_tls,
            )
            dispatcher.add_sampler(sampler)
            return sampler

        names = parse_peer_names(settings.samplers)
        return PeerSet(names, make, interval_s=settings.dns_interval_s, on_removed=dispatcher.remove_sampler)

    def _on_samplers_change(self) -> None:
        self._changed.set()
        # Who was lost may be gone for good, and another one in its place.
        if self._samplers is not None:
            self._samplers.look_now()

    def on_engine_refused(self, number: int, error: ServiceError) -> None:
        """See `Dispatcher` and `PrefixCalls`."""
        self._require_dispatcher().on_engine_refused(number, error)
        self._require_prefixes().on_refused(number, error)

    def on_engine_admitted(self, numbers: Sequence[int]) -> None:
        """See `Dispatcher`."""
        self._require_dispatcher().on_engine_admitted(numbers)

    def on_engine_output(self, output: StepOutput, ended_at: float) -> None:
        """See `Dispatcher`, `PrefixCalls` and `KvWatch`."""
        self._servicer.load = output.load
        self._step_metrics.observe(output.load, ended_at, len(output.started))
        self._require_dispatcher().on_engine_output(output, ended_at)
        self._require_prefixes().on_output(output)
        if output.kv_changes is not None:
            self._kv_watch.on_changes(output.kv_changes)

    def on_engine_unpinned(self, number: int, was_pinned: bool) -> None:
        """See `PrefixCalls`."""
        self._require_prefixes().on_answer(number, was_pinned)

    def on_engine_stats(self, number: int, stats: PrefixStats) -> None:
        """See `PrefixCalls`."""
        self._require_prefixes().on_answer(number, stats)

    def on_engine_failed(self, error: EngineFailed) -> None:
        """Ends all requests; the process follows."""
        if self._dispatcher is not None:
            was_lost = isinstance(error, EngineLost)
            fault = Unavailable("the engine was lost") if was_lost else Internal("the engine has failed")
            self._dispatcher.on_engine_failed(fault)
            self._end_prefix_calls(fault)
        if not self._failure.done():
            self._failure.set_exception(error)
        self._changed.set()

    def _require_dispatcher(self) -> Dispatcher:
        assert self._dispatcher is not None, "an engine is loaded before it works"
        return self._dispatcher

    def _require_prefixes(self) -> PrefixCalls:
        assert self._prefixes is not None, "an engine is loaded before it works"
        return self._prefixes

    def _end_prefix_calls(self, error: ServiceError) -> None:
        self._require_prefixes().refuse(error)
        self._kv_watch.close(error)

    async def _beat(self) -> None:
        """Keeps readiness and the gateways' knowledge of the load up to date, and the engine under watch."""
        told_at = 0.0
        while True:
            self._watch_engine()
            for server in self._servers:
                await server.health.set_ready(self._is_ready())
            if self._dispatcher is not None:
                self._engine.ping()
                self._dispatcher.fail_overdue()
                is_busy = self._dispatcher.queued_prefill.tokens > 0
                self._prefill_pace.observe(time.monotonic(), self._servicer.load.prefill_tokens, is_busy=is_busy)
                if time.monotonic() - told_at >= _LOAD_INTERVAL_S:
                    told_at = time.monotonic()
                    load = load_message(self._servicer.load)
                    for gateway in self._dispatcher.gateways:
                        gateway.set_load(load)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _HEARTBEAT_S)
            self._changed.clear()

    def _queued_prefill_s(self) -> float:
        """Seconds of prefill that wait. How much of a prompt is cached is known when it is admitted: until then, as much as of those before."""
        if self._dispatcher is None:
            return 0.0
        queued, load = self._dispatcher.queued_prefill, self._servicer.load
        seen = load.prefill_tokens + load.cached_tokens
        return self._prefill_pace.seconds(queued.tokens * (load.prefill_tokens / seen if seen else 1.0), queued.oldest_s)

    def _watch_engine(self) -> None:
        """An engine that hangs will not come back by itself: it ends, and the process with it, which whoever runs it starts again."""
        is_silent = self._engine.silent_s > 0
        wrong = self._engine_watch.look(
            time.monotonic(),
            is_silent=is_silent,
            is_loading=self._dispatcher is None,
            used_s=self._engine.used_s if is_silent else None,
        )
        if wrong is not None:
            self._engine.give_up(wrong)

    def _is_ready(self) -> bool:
        is_stalled = self._engine.silent_s > self._settings.stall_timeout_s
        return (
            self._dispatcher is not None
            and self._dispatcher.has_sampler
            and not is_stalled
            and not self._failure.done()
            and not self._is_draining
        )

    async def _drain(self, dispatcher: Dispatcher) -> None:
        error = Unavailable("the replica is shutting down")
        dispatcher.refuse(error)
        self._end_prefix_calls(error)
        await dispatcher.wait_until_idle(self._settings.drain_timeout_s)
        dispatcher.fail_all(error)
        await dispatcher.wait_until_idle(_LAST_WORDS_S)
        for gateway in dispatcher.gateways:
            gateway.close()

    def _open_vllm_door(self, listen: str, tls: ServerTls | None) -> ServiceServer:
        # What it speaks is in an extra of its own.
        from compute_svc.replica.vllm_door.model_facts import read_model_facts  # noqa: PLC0415
        from compute_svc.replica.vllm_door.servicer import SERVICE_NAME as VLLM_SERVICE_NAME  # noqa: PLC0415
        from compute_svc.replica.vllm_door.servicer import VllmServicer  # noqa: PLC0415

        servicer = VllmServicer(
            self._servicer,
            self._settings.model,
            read_model_facts(self._settings.model),
            model_name=self._settings.vllm_model_name or self._settings.model.name,
            max_running_requests=self._settings.max_running_requests,
            is_ready=lambda: self.health.ready,
        )
        return ServiceServer([VLLM_SERVICE_NAME], servicer.add_to, listen, tls=tls)

    def _register(self, server: grpc.aio.Server) -> None:
        add: Any = compute_pb2_grpc.add_ComputeServiceServicer_to_server
        add(self._servicer, server)
        add_prefixes: Any = compute_pb2_grpc.add_PrefixCacheServiceServicer_to_server
        add_prefixes(self._prefix_servicer, server)
