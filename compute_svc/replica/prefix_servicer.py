"""The wire's side of the prefix cache: pins, counters and events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from compute_svc.replica.kv_watch import KvWatch
from compute_svc.replica.prefix_calls import PrefixCalls
from compute_svc.replica.submission import read_prefix
from compute_svc.wire.request import Tokens
from compute_svc.wire.step_output import EngineInfo
from triserve.rpc.errors import Unavailable
from triserve.v1 import compute_pb2, compute_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class PrefixCacheServicer(compute_pb2_grpc.PrefixCacheServiceServicer):
    """Serves operators and routers as soon as there is an engine.

    Args:
        kv_watch: Knows what is cached.
    """

    def __init__(self, kv_watch: KvWatch) -> None:
        self._kv_watch = kv_watch
        self._prefixes: PrefixCalls | None = None
        self._info: EngineInfo | None = None

    def open(self, info: EngineInfo, prefixes: PrefixCalls) -> None:
        """From now on calls are answered."""
        self._prefixes = prefixes
        self._info = info

    async def PinPrefix(self, request: compute_pb2.PinPrefixRequest, context: Context) -> compute_pb2.PinPrefixResponse:
        """Computes a prefix, unless it is cached, and keeps it.

        Raises:
            InvalidRequest: It has no whole page, an id out of range, or more tokens than fit.
            Overloaded: Too much would be pinned, or the queue is full.
            DeadlineExceeded: It could not be computed in time.
        """
        prefixes, info = self._require_loaded()
        tokens = _read(request, info)
        pinned = await prefixes.pin(request.tenant, tokens, context.time_remaining())
        return compute_pb2.PinPrefixResponse(pinned_tokens=pinned.tokens, computed_tokens=pinned.computed_tokens)

    async def UnpinPrefix(self, request: compute_pb2.UnpinPrefixRequest, context: Context) -> compute_pb2.UnpinPrefixResponse:
        """Lets a pinned prefix go.

        Raises:
            InvalidRequest: It has no whole page, or an id out of range.
        """
        prefixes, info = self._require_loaded()
        tokens = _read(request, info)
        return compute_pb2.UnpinPrefixResponse(was_pinned=await prefixes.unpin(request.tenant, tokens))

    async def GetPrefixStats(self, request: compute_pb2.GetPrefixStatsRequest, context: Context) -> compute_pb2.GetPrefixStatsResponse:
        """What the prefix cache holds and has been good for."""
        prefixes, info = self._require_loaded()
        values = (await prefixes.stats())._asdict()
        pins = [compute_pb2.PinnedPrefix(tenant=tenant, tokens=tokens, hash=last) for tenant, tokens, last in values.pop("pins")]
        return compute_pb2.GetPrefixStatsResponse(page_size_tokens=info.page_size_tokens, pins=pins, **values)

    async def WatchKvEvents(
        self, request: compute_pb2.WatchKvEventsRequest, context: Context
    ) -> AsyncIterator[compute_pb2.WatchKvEventsResponse]:
        """What is cached, and from then on how that changes.

        Raises:
            Overloaded: Too many watch.
        """
        self._require_loaded()
        async with contextlib.aclosing(self._kv_watch.messages()) as messages:
            async for message in messages:
                yield message

    def _require_loaded(self) -> tuple[PrefixCalls, EngineInfo]:
        if self._prefixes is None or self._info is None:
            raise Unavailable("the model is being loaded")
        return self._prefixes, self._info


def _read(request: compute_pb2.PinPrefixRequest | compute_pb2.UnpinPrefixRequest, info: EngineInfo) -> Tokens:
    return read_prefix(
        request,
        logits_width=info.logits_width,
        page_size_tokens=info.page_size_tokens,
        max_request_tokens=info.max_request_tokens,
    )
