"""Spans over real OTLP/gRPC: they arrive as they were recorded, and a collector that is not there costs who records them nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import grpc
import pytest

from tests.fakes.certificates import Authority
from tests.fakes.otlp_collector import CollectedSpan, running_collector
from tests.ports import free_port
from triserve.rpc.traces.context import SpanContext
from triserve.rpc.traces.otlp import OtlpExporter
from triserve.rpc.traces.span_queue import SpanQueue
from triserve.rpc.traces.spans import Tracer

PATIENCE_S = 20.0
CALLER = SpanContext.root()


def exporter(target: str, *, scheme: str = "http", timeout_s: float = PATIENCE_S) -> OtlpExporter:
    return OtlpExporter(f"{scheme}://{target}", service="sampler", version="1.2.3", timeout_s=timeout_s)


async def test_a_span_arrives_as_it_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=secret")
    async with running_collector() as collector:
        queue = SpanQueue(exporter(collector.target))
        tracer, began_at, now_ns = Tracer(queue.put), time.monotonic(), time.time_ns()
        span = tracer.begin("sample", CALLER, kind="server")
        span.attributes |= {"text": "é", "count": 3, "share": 0.5, "flag": True, "reasons": ("stop", "length")}
        span.record("inner", began_at - 2.0, began_at - 1.0, attributes={})
        span.error = "unavailable"
        span.end()
        await asyncio.to_thread(queue.close, PATIENCE_S)
        outer, inner = sorted(collector.spans, key=lambda one: one.name, reverse=True)
    assert outer == CollectedSpan(
        "triserve-sampler",
        "sample",
        CALLER.trace_id,
        span.context.span_id,
        CALLER.span_id,
        True,
        2,
        outer.began_ns,
        outer.ended_ns,
        {"text": "é", "count": 3, "share": 0.5, "flag": True, "reasons": ["stop", "length"], "error.type": "unavailable"},
        True,
    )
    assert (inner.parent_id, inner.is_entry, inner.kind, inner.is_error, inner.attributes) == (span.context.span_id, False, 1, False, {})
    assert inner.ended_ns - inner.began_ns == pytest.approx(1e9, abs=1e3)
    assert abs(inner.ended_ns - (now_ns - 1_000_000_000)) < PATIENCE_S * 1e9
    assert collector.metadata["x-token"] == "secret"
    assert (queue.exported, queue.refused) == (2, 0)


@pytest.mark.parametrize("is_trusted", [True, False])
async def test_a_collector_over_tls_gets_spans_if_its_certificate_is_trusted(
    is_trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Authority(tmp_path), Authority(tmp_path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(ours.ca_file))
    async with running_collector((ours if is_trusted else theirs).files("127.0.0.1")) as collector:
        queue = SpanQueue(exporter(collector.target, scheme="https", timeout_s=PATIENCE_S if is_trusted else 0.5), batch=1)
        Tracer(queue.put).begin("sample", CALLER).end()
        await asyncio.to_thread(queue.close, PATIENCE_S)
        assert (queue.exported, queue.refused, len(collector.spans)) == ((1, 0, 1) if is_trusted else (0, 1, 0))


async def test_a_collector_that_is_not_there_or_refuses_is_counted() -> None:
    async with running_collector() as collector:
        collector.refuses = grpc.StatusCode.PERMISSION_DENIED
        for target, timeout_s in ((f"127.0.0.1:{free_port()}", 0.2), (collector.target, PATIENCE_S)):
            queue = SpanQueue(exporter(target, timeout_s=timeout_s), batch=1)
            Tracer(queue.put).begin("sample", CALLER).end()
            await asyncio.to_thread(queue.close, PATIENCE_S)
            assert (queue.exported, queue.refused, queue.overflowed) == (0, 1, 0)


def test_a_process_leaves_in_time_although_its_collector_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        queue = SpanQueue(exporter(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=3600.0), batch=1)
        Tracer(queue.put).begin("sample", CALLER).end()
        queue.close(0.05)
        # Closing the exporter has ended what it waited for, and its thread with it.
        queue.close(PATIENCE_S)
    assert (queue.exported, queue.refused) == (0, 1)
