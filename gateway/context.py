"""What the doors of a gateway work with, and what is known of a request besides its body."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gateway.auth import Grant, LiveKeys
from gateway.clients.fleet import Fleet
from gateway.flow.admission import Admission
from gateway.flow.limits import Limits
from gateway.flow.pipeline import Pipeline
from gateway.flow.served_model import ServedNames
from gateway.hosts import AllowedHosts
from gateway.http.bodies import BodyReader
from gateway.http.cors import Cors
from gateway.metrics import Metrics
from gateway.traces import RequestTraces
from triserve.rpc.traces.spans import OpenSpan


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """What the routes and the gRPC service work with."""

    pipeline: Pipeline
    fleet: Fleet
    admission: Admission
    bodies: BodyReader
    keys: LiveKeys
    hosts: AllowedHosts
    cors: Cors
    names: ServedNames
    limits: Limits
    metrics: Metrics
    # None = nothing is traced.
    traces: RequestTraces | None
    # Unix time of the start, seconds.
    started_at: int


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)

# Keys of a request. The id is server-made, 128 bits in hex; the label is what the client calls it, or empty.
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
CLIENT_LABEL: web.RequestKey[str] = web.RequestKey("client_label", str)
# Has a stream of events, once it has begun, write a comment if it has nothing else to write.
WAKE: web.RequestKey[Callable[[], None]] = web.RequestKey("wake")
GRANT: web.RequestKey[Grant] = web.RequestKey("grant", Grant)
# Of a request that is traced.
SPAN: web.RequestKey[OpenSpan] = web.RequestKey("span", OpenSpan)
