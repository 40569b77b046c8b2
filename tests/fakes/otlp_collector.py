"""An OpenTelemetry collector over real gRPC that keeps what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from triserve.rpc.tls.certificate import CertificateFiles

_PATIENCE_S = 60.0


class CollectedSpan(NamedTuple):
    """A span as it came over the wire."""

    # Of its resource.
    service: str
    name: str
    # Hex, as all ids here; the parent's is empty where there is none.
    trace_id: str
    span_id: str
    parent_id: str
    # Whether the parent is said to be of another process.
    is_entry: bool
    kind: int
    began_ns: int
    ended_ns: int
    attributes: dict[str, Any]
    is_error: bool


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans, or refuses them while `refuses` is set."""

    def __init__(self) -> None:
        self.target = ""
        self.spans: list[CollectedSpan] = []
        self.metadata: dict[str, str] = {}
        self.refuses: grpc.StatusCode | None = None
        self._came = asyncio.Event()

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Takes a batch."""
        if self.refuses is not None:
            await context.abort(self.refuses, "refused")
        self.metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        for of_resource in request.resource_spans:
            service = _values(of_resource.resource.attributes)["service.name"]
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    self.spans.append(
                        CollectedSpan(
                            service,
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            bool(span.flags & trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK),
                            span.kind,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _values(span.attributes),
                            span.status.code == span.status.STATUS_CODE_ERROR,
                        )
                    )
        self._came.set()
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, trace_id: str) -> list[CollectedSpan]:
        """Those of one trace."""
        return [span for span in self.spans if span.trace_id == trace_id]

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Returns when what has come makes the condition hold.

        Raises:
            AssertionError: it does not come to hold; says what.
        """
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not condition():
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            names = sorted(f"{span.service} {span.name}" for span in self.spans)
            raise AssertionError(f"still not so: {what}; there are {names}") from None


@asynccontextmanager
async def running_collector(files: CertificateFiles | None = None) -> AsyncIterator[Collector]:
    """A collector on a free port, with the certificate in these files or in plain text."""
    collector, server = Collector(), grpc.aio.server()
    add: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    if files is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        credentials = grpc.ssl_server_credentials([(files.key.read_bytes(), files.cert.read_bytes())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    collector.target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(None)


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, str(kind))
