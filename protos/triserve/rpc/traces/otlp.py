"""Gives spans to an OpenTelemetry collector over OTLP/gRPC. The one file that imports OpenTelemetry, which is an extra."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from triserve.rpc.traces.spans import Kind, Span

# For one batch, all attempts at it together: a collector may be started anew meanwhile.
_TIMEOUT_S = 10.0
_SCOPE = InstrumentationScope("triserve")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS: dict[Kind, SpanKind] = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_OK, _NANOS = Status(StatusCode.UNSET), 1_000_000_000


class OtlpExporter:
    """Implements `Exporter`. OTEL_RESOURCE_ATTRIBUTES, OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_CERTIFICATE count.

    Args:
        endpoint: http://HOST:PORT, or https:// for TLS.
        service: name of the service.
        version: of it.
        timeout_s: for one batch, all attempts at it together.
    """

    def __init__(self, endpoint: str, *, service: str, version: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._resource = Resource.create(
            {
                "service.namespace": "triserve",
                "service.name": f"triserve-{service}",
                "service.version": version,
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
            }
        )
        self._exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=timeout_s)
        # It tells of every attempt that fails; that spans are refused is said once, and counted.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[Span]) -> bool:
        """See `Exporter`."""
        # Of each batch anew: clocks are set while a process runs.
        offset = time.time_ns() - time.monotonic_ns()

        def unix_ns(at: float) -> int:
            return offset + int(at * _NANOS)

        return self._exporter.export([self._readable(span, unix_ns) for span in spans]) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """See `Exporter`."""
        self._exporter.shutdown()

    def _readable(self, span: Span, unix_ns: Callable[[float], int]) -> ReadableSpan:
        trace_id = int(span.context.trace_id, 16)
        parent = None if span.parent_id is None else SpanContext(trace_id, int(span.parent_id, 16), is_remote=span.is_entry)
        return ReadableSpan(
            span.name,
            SpanContext(trace_id, int(span.context.span_id, 16), is_remote=False, trace_flags=_SAMPLED),
            parent,
            self._resource,
            span.attributes,
            kind=_KINDS[span.kind],
            status=_OK if span.error is None else Status(StatusCode.ERROR, span.error),
            start_time=unix_ns(span.began_at),
            end_time=unix_ns(span.ended_at),
            instrumentation_scope=_SCOPE,
        )
