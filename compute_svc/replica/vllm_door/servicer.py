"""vLLM's engine service over a replica's dispatcher: each call is a gateway of its own, with the calls' requests and no queue beside the replica's."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc
from smg_grpc_proto.generated import common_pb2 as smg_pb2

from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.replica.servicer import ComputeServicer, cut_off_if_unread
from compute_svc.replica.vllm_door.answers import answers_of
from compute_svc.replica.vllm_door.generate_request import read_generate_request
from compute_svc.replica.vllm_door.model_facts import ModelFacts, tokenizer_archive
from triserve.rpc.errors import InvalidRequest, ServiceError

SERVICE_NAME: str = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"].full_name
_MAX_DEADLINE_MS = 2**32 - 1
_CHUNK_BYTES = 64 * 1024
# What routers of vLLM are told to be behind the service.
_SERVER_TYPE = "vllm-grpc"

Context = grpc.aio.ServicerContext[Any, Any]


class Unimplemented(ServiceError):
    """A call of the service that a replica does not serve."""

    code = grpc.StatusCode.UNIMPLEMENTED
    http_status = 501
    reason = "UNIMPLEMENTED"


class VllmServicer:
    """Serves routers as soon as there is an engine to serve them with.

    Args:
        replica: whose dispatcher and load it uses.
        folder: of the model.
        facts: of that folder.
        model_name: under which routers find the model.
        max_running_requests: of the replica.
        is_ready: whether the replica takes requests.
    """

    def __init__(
        self,
        replica: ComputeServicer,
        folder: Path,
        facts: ModelFacts,
        *,
        model_name: str,
        max_running_requests: int,
        is_ready: Callable[[], bool],
    ) -> None:
        self._replica = replica
        self._folder = folder
        self._facts = facts
        self._model_name = model_name
        self._max_running_requests = max_running_requests
        self._is_ready = is_ready
        self._links: dict[str, GatewayLink] = {}
        # Made once, for callers however many and slow.
        self._archive: tuple[bytes, str] | None = None
        self._archiving = asyncio.Lock()
        self._started_at = time.monotonic()
        self._last_request_at = 0.0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers itself."""
        add: Any = vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server
        add(self, server)

    async def Generate(self, request: vllm_engine_pb2.GenerateRequest, context: Context) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
        """Answers one prompt; what ends the call ends its requests.

        Raises:
            Unavailable: The model is still loading, or a stage was lost.
            InvalidRequest: Names the field.
            Overloaded: As many requests wait as may, or the caller does not read.
        """
        info, dispatcher = self._replica.require_loaded()
        self._last_request_at = time.time()
        request.request_id = request.request_id or secrets.token_hex(16)
        submissions = read_generate_request(
            request,
            ends=[token for token in self._facts.ends if token < info.logits_width],
            max_model_len_tokens=info.max_model_len_tokens,
            deadline_ms=_deadline_ms(context),
        )
        if request.request_id in self._links:
            raise InvalidRequest(f"request {request.request_id[:64]!r} is under way already", field="request_id")
        link = self._links[request.request_id] = dispatcher.open_gateway("vllm")

        def leave() -> None:
            dispatcher.close_gateway(link)
            if self._links.get(request.request_id) is link:
                del self._links[request.request_id]

        # The generator may hang in a send when the caller goes; this tells of the end whatever it hangs in.
        context.add_done_callback(lambda _: leave())  # type: ignore[arg-type]  # the stubs want a class here
        watch = asyncio.ensure_future(cut_off_if_unread(link, dispatcher, context))
        try:
            for submission in submissions:
                dispatcher.submit(link, submission)
            async for response in answers_of(link, request, submissions):
                yield response
        finally:
            watch.cancel()
            leave()

    async def Abort(self, request: vllm_engine_pb2.AbortRequest, context: Context) -> vllm_engine_pb2.AbortResponse:
        """Ends requests; their calls answer what came until then. Those that are not under way are ignored."""
        _, dispatcher = self._replica.require_loaded()
        for request_id in request.request_ids:
            if (link := self._links.get(request_id)) is not None:
                for number in list(link.requests):
                    dispatcher.cancel(link, number)
        return vllm_engine_pb2.AbortResponse()

    async def HealthCheck(self, request: vllm_engine_pb2.HealthCheckRequest, context: Context) -> vllm_engine_pb2.HealthCheckResponse:
        """Whether requests are taken.

        Raises:
            Unavailable: The model is still loading. A router that got any answer would ask at once what the model is, and keep that it is none.
        """
        self._replica.require_loaded()
        ready = self._is_ready()
        return vllm_engine_pb2.HealthCheckResponse(healthy=ready, message="ready" if ready else "not ready")

    async def GetModelInfo(self, request: vllm_engine_pb2.GetModelInfoRequest, context: Context) -> vllm_engine_pb2.GetModelInfoResponse:
        """What is served."""
        info, _ = self._replica.require_loaded()
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=str(self._folder),
            is_generation=True,
            max_context_length=info.max_model_len_tokens,
            vocab_size=info.logits_width,
            served_model_name=self._model_name,
            tokenizer_path=str(self._folder),
            model_type=self._facts.model_type,
            architectures=self._facts.architectures,
            eos_token_ids=self._facts.ends,
            pad_token_id=self._facts.pad_token_id,
            bos_token_id=self._facts.bos_token_id,
            max_req_input_len=info.max_model_len_tokens - 1,
            default_sampling_params_json=self._facts.sampling_defaults,
        )

    async def GetServerInfo(self, request: vllm_engine_pb2.GetServerInfoRequest, context: Context) -> vllm_engine_pb2.GetServerInfoResponse:
        """What the replica is; nothing of it moves KV to other engines or looks at images."""
        info, _ = self._replica.require_loaded()
        return vllm_engine_pb2.GetServerInfoResponse(
            active_requests=len(self._links),
            last_receive_timestamp=self._last_request_at,
            uptime_seconds=time.monotonic() - self._started_at,
            server_type=_SERVER_TYPE,
            data_parallel_size=1,
            kv_cache_dtype=info.kv_format,
            block_size=info.page_size_tokens,
            model_dtype=info.dtype,
            max_num_seqs=self._max_running_requests,
            constrained_decoding_start="first_token",
        )

    async def GetLoads(self, request: vllm_engine_pb2.GetLoadsRequest, context: Context) -> vllm_engine_pb2.GetLoadsResponse:
        """The load of the whole replica, whoever its requests are from."""
        info, dispatcher = self._replica.require_loaded()
        load = self._replica.load
        looked_up = load.prefill_tokens + load.cached_tokens
        share = load.used_pages / info.num_pages
        one = vllm_engine_pb2.SchedulerLoad(
            num_running_reqs=load.running_requests,
            num_waiting_reqs=load.waiting_requests,
            num_total_reqs=load.running_requests + load.waiting_requests,
            num_used_tokens=load.used_pages * info.page_size_tokens,
            max_total_num_tokens=info.num_pages * info.page_size_tokens,
            token_usage=share,
            cache_hit_rate=load.cached_tokens / looked_up if looked_up else 0.0,
            utilization=share,
            max_running_requests=self._max_running_requests,
            num_waiting_uncached_tokens=dispatcher.queued_prefill.tokens,
        )
        now = datetime.now(UTC).isoformat()
        return vllm_engine_pb2.GetLoadsResponse(timestamp=now, version=version("triserve"), dp_rank_count=1, loads=[one])

    async def GetTokenizer(self, request: smg_pb2.GetTokenizerRequest, context: Context) -> AsyncIterator[smg_pb2.GetTokenizerChunk]:
        """The model folder's tokenizer files."""
        async with self._archiving:
            if self._archive is None:
                self._archive = await asyncio.to_thread(tokenizer_archive, self._folder)
        content, sha256 = self._archive
        for offset in range(0, len(content), _CHUNK_BYTES):
            piece = content[offset : offset + _CHUNK_BYTES]
            yield smg_pb2.GetTokenizerChunk(data=piece, sha256=sha256 if offset + len(piece) == len(content) else "")

    async def Embed(self, request: vllm_engine_pb2.EmbedRequest, context: Context) -> vllm_engine_pb2.EmbedResponse:
        """Is not served."""
        raise Unimplemented("Embed is not served: embeddings are made at the gateway, POST /v1/embeddings")

    async def FlushCache(self, request: smg_pb2.FlushCacheRequest, context: Context) -> smg_pb2.FlushCacheResponse:
        """Is not served."""
        raise Unimplemented("FlushCache is not served: the prefix cache gives pages up when it needs them")

    async def StartProfile(self, request: smg_pb2.StartProfileRequest, context: Context) -> smg_pb2.ProfileResponse:
        """Is not served."""
        raise Unimplemented("StartProfile is not served")

    async def StopProfile(self, request: smg_pb2.StopProfileRequest, context: Context) -> smg_pb2.ProfileResponse:
        """Is not served."""
        raise Unimplemented("StopProfile is not served")

    async def SubscribeKvEvents(self, request: smg_pb2.SubscribeKvEventsRequest, context: Context) -> AsyncIterator[smg_pb2.KvEventBatch]:
        """Is not served."""
        raise Unimplemented("SubscribeKvEvents is not served: PrefixCacheService.WatchKvEvents tells of the prefix cache")
        yield  # a stream, although nothing comes


def _deadline_ms(context: Context) -> int:
    """Milliseconds the caller gives; 0 = it does not say."""
    left_s = context.time_remaining()
    return 0 if left_s is None else max(1, min(_MAX_DEADLINE_MS, math.ceil(1000 * left_s)))
