"""What an operator's variables say of traces: whether there are any, and where they go."""

from __future__ import annotations

from importlib.metadata import version

from triserve.rpc.tls.loopback import PlainText
from triserve.rpc.traces.span_queue import SpanQueue

# Nothing else of a URL has a meaning, and a name or password in it would be in the log.
OTLP_ENDPOINT = r"^https?://[^/@?#\s]+:\d{1,5}/?$"


class NoOpenTelemetry(Exception):
    """Traces are wanted, and what exports them is not installed; the message says what to do."""


def open_queue(service: str, endpoint: str, *, variable: str) -> SpanQueue:
    """Where spans wait to be given to a collector, in a process that has one.

    Args:
        service: its name.
        endpoint: of the collector.
        variable: that names it.

    Raises:
        NoOpenTelemetry: see there.
    """
    try:
        # Of an extra, which a service without traces does without.
        from triserve.rpc.traces.otlp import OtlpExporter  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise NoOpenTelemetry(f"{variable} is set, and {error.name} is not installed: pip install 'triserve[otel]'") from None
    return SpanQueue(OtlpExporter(endpoint, service=service, version=version("triserve")))


def plain_text_to_collector(prefix: str, endpoint: str | None) -> list[PlainText]:
    """The way to a collector that is in plain text; none if there is no such way.

    Args:
        prefix: of the service's variables, such as "GATEWAY_".
        endpoint: of the collector.
    """
    return [PlainText(f"{prefix}OTLP_ENDPOINT", endpoint, "https://")] if endpoint is not None and endpoint.startswith("http://") else []
