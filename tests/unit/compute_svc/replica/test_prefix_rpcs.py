"""The prefix cache from outside, over real gRPC: pinning, counters, and watching what is cached."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from compute_svc.replica.kv_watch import MAX_WATCHERS
from tests.fakes.compute_replica import SAMPLED, TIMEOUT_S, Gateway, Replica, until
from triserve.rpc.page_hash import page_hashes, tenant_hash
from triserve.v1 import compute_pb2

PREFIX = [1, 2, 3, 4, 5, 6, 7, 8]


def _pin(gateway: Gateway, tokens: list[int], tenant: str = "", timeout_s: float = TIMEOUT_S) -> grpc.aio.UnaryUnaryCall[object, object]:
    request = compute_pb2.PinPrefixRequest(tenant=tenant, token_ids=tokens)
    call: grpc.aio.UnaryUnaryCall[object, object] = gateway.prefixes.PinPrefix(request, timeout=timeout_s)
    return call


def _hashes(tokens: list[int], tenant: str = "") -> list[int]:
    return page_hashes(tenant_hash(tenant), np.array(tokens, "<u4").tobytes(), 4)


class _Watch:
    """One watcher and what it believes to be cached."""

    def __init__(self, gateway: Gateway) -> None:
        self._call = gateway.prefixes.WatchKvEvents(compute_pb2.WatchKvEventsRequest())
        self.cached: set[int] = set()
        self.messages = 0

    async def read(self) -> None:
        message = await asyncio.wait_for(self._call.read(), TIMEOUT_S)
        assert message is not grpc.aio.EOF
        assert message.reset == (self.messages == 0)
        self.messages += 1
        assert not set(message.stored) & set(message.removed)
        assert set(message.removed) <= self.cached
        self.cached = (self.cached - set(message.removed)) | set(message.stored)

    async def read_until(self, cached: set[int]) -> None:
        while not self.messages or self.cached != cached:
            await self.read()

    def leave(self) -> None:
        self._call.cancel()


async def test_a_pinned_prefix_is_computed_once_and_then_a_hit(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    assert await _pin(gateway, [*PREFIX, 9]) == compute_pb2.PinPrefixResponse(pinned_tokens=8, computed_tokens=8)
    assert await _pin(gateway, PREFIX) == compute_pb2.PinPrefixResponse(pinned_tokens=8, computed_tokens=0)
    await gateway.submit(1, [*PREFIX, 9, 10], 2)
    await gateway.end_of(1)
    assert gateway.started[1].cached_tokens == 8
    stats = await gateway.prefixes.GetPrefixStats(compute_pb2.GetPrefixStatsRequest())
    assert list(stats.pins) == [compute_pb2.PinnedPrefix(tenant="", tokens=8, hash=_hashes(PREFIX)[-1])]
    assert (stats.pinned_pages, stats.max_pinned_pages, stats.page_size_tokens, stats.tenants) == (2, 16, 4, 1)
    assert stats.hit_tokens == 8
    unpin = compute_pb2.UnpinPrefixRequest(token_ids=PREFIX)
    assert (await gateway.prefixes.UnpinPrefix(unpin)).was_pinned
    assert not (await gateway.prefixes.UnpinPrefix(unpin)).was_pinned
    await replica.idle()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2, 3], "token_ids has 3 ids, it must have a page at least, 4"),
        ([1, 2, 3, 999], "token_ids has id 999"),
        ([1] * 64, "token_ids has 64 tokens, the limit is 63"),
    ],
    ids=["less than a page", "no such id", "too long"],
)
async def test_a_prefix_that_cannot_be_pinned_is_refused_by_name(replica: Replica, tokens: list[int], message: str) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await _pin(gateway, tokens)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (error.value.details() or "")


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_a_pin_nobody_waits_for_any_more_is_given_up(replica: Replica, how: str) -> None:
    await (await replica.start(sizes={"max_running_requests": 1})).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [9, 9], 2, sampling=SAMPLED)
    await until(lambda: any(frame.request for frame in replica.samplers[0].frames))
    call = _pin(gateway, PREFIX, timeout_s=0.2 if how == "deadline" else TIMEOUT_S)
    if how == "cancel":
        await until(lambda: replica.engine is not None and replica.engine.load.waiting_requests == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    else:
        with pytest.raises(grpc.aio.AioRpcError, match="DEADLINE"):
            await call
    await until(lambda: replica.engine is not None and replica.engine.load.waiting_requests == 0)
    replica.samplers[0].may_answer.set()
    await gateway.end_of(1)
    await replica.idle()
    stats = await gateway.prefixes.GetPrefixStats(compute_pb2.GetPrefixStatsRequest())
    assert (list(stats.pins), stats.pinned_pages) == ([], 0)


async def test_watchers_know_what_is_cached_whenever_they_come(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    await _pin(gateway, PREFIX, tenant="a")
    early = _Watch(gateway)
    await early.read_until(set(_hashes(PREFIX, "a")))
    await _pin(gateway, [9] * 4)
    both = {*_hashes(PREFIX, "a"), *_hashes([9] * 4)}
    late = _Watch(gateway)
    for watch in (early, late):
        await watch.read_until(both)
    # Pages of others are given up for these; what is pinned stays.
    for number in range(1, 6):
        await gateway.submit(number, [number] * 40, 16)
        await gateway.end_of(number)
    stats = await gateway.prefixes.GetPrefixStats(compute_pb2.GetPrefixStatsRequest())
    assert stats.evicted_pages > 0
    last = _Watch(gateway)
    await last.read()
    assert len(last.cached) == stats.cached_pages and both <= last.cached
    for watch in (early, late):
        await watch.read_until(last.cached)
        watch.leave()
    last.leave()


async def test_one_watcher_too_many_is_refused(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    watches = [_Watch(gateway) for _ in range(MAX_WATCHERS)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError, match="the limit is 64"):
        await _Watch(gateway).read()
    for watch in watches:
        watch.leave()


async def test_calls_end_when_the_replica_shuts_down(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    watch = _Watch(gateway)
    await watch.read()
    replica.gate.open.clear()
    call = _pin(gateway, PREFIX)
    await until(lambda: replica.engine is not None and replica.engine.load.running_requests == 1)
    stop = asyncio.create_task(replica.running.stop())
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
        await call
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down"):
        await watch.read()
    replica.gate.open.set()
    await stop
