"""The sampler as a running service: loads the tokenizer, serves, drains."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Any

import grpc

from sampler_svc.grammar_check.checker import CheckLimits, GrammarChecker, Words
from sampler_svc.grammars import GrammarCompiler
from sampler_svc.metrics import Metrics, StateCollector
from sampler_svc.request_slots import RequestSlots
from sampler_svc.servicer import SamplerServicer
from sampler_svc.settings import Settings
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from triserve.rpc.fingerprint import fingerprint_of
from triserve.rpc.metrics_server import new_registry
from triserve.rpc.server import Health, ServiceServer
from triserve.rpc.traces.spans import Tracer
from triserve.v1 import sampler_pb2, sampler_pb2_grpc

SERVICE_NAME = sampler_pb2.DESCRIPTOR.services_by_name["SamplerService"].full_name
# For answers that are on their way when all streams have been told to end.
_LAST_ANSWERS_S = 1.0


class SamplerService:
    """One sampler process.

    Args:
        settings: of the process.
        tracer: records spans; None = nothing is traced.
    """

    def __init__(self, settings: Settings, tracer: Tracer | None = None) -> None:
        self._settings = settings
        vocabulary = Vocabulary(load_tokenizer(settings.model / "tokenizer.json"))
        self.registry = new_registry("sampler", version("triserve"))
        slots = RequestSlots(settings.max_open_requests)
        self._grammars = GrammarCompiler(settings.model / "tokenizer.json", vocabulary)
        limits = CheckLimits(settings.grammar_timeout_s, settings.grammar_memory_bytes, settings.grammar_workers)
        self._checker = GrammarChecker(self._words, limits)
        servicer = SamplerServicer(
            vocabulary,
            self._grammars,
            self._checker,
            fingerprint_of(settings.model),
            slots,
            settings.max_queued_frames,
            Metrics(self.registry),
            tracer,
        )
        self._servicer = servicer
        self.registry.register(StateCollector(open_requests=lambda: slots.open_requests, oldest_frame_s=lambda: servicer.oldest_frame_s))
        self._server = ServiceServer([SERVICE_NAME], self._register, settings.listen, tls=settings.server_tls())
        self._server.tell(self.registry)

    @property
    def health(self) -> Health:
        """Whether it takes requests."""
        return self._server.health

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.port

    async def start(self) -> None:
        """Listens, ready at once."""
        await self._server.start()
        await self._server.health.set_ready(True)

    async def stop(self) -> None:
        """Lets requests under way end, then takes the server down."""
        await self._server.leave(has_peers=self._servicer.has_streams)
        await self._servicer.drain(self._settings.drain_timeout_s)
        await self._server.stop(_LAST_ANSWERS_S)
        await self._checker.close()
        self._grammars.close()

    async def _words(self) -> Words:
        return await asyncio.get_running_loop().run_in_executor(self._grammars.threads, self._grammars.words)

    def _register(self, server: grpc.aio.Server) -> None:
        add: Any = sampler_pb2_grpc.add_SamplerServiceServicer_to_server
        add(self._servicer, server)
