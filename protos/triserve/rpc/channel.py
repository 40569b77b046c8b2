"""Channels between stages: limits and keepalive that notice a peer that is gone, and one that is stopped."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from triserve.rpc.tls.ends import ClientTls

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
KEEPALIVE_MS = 2_000
PING_TIMEOUT_MS = 2_000

# grpc.keepalive_timeout_ms alone does not notice a peer that is stopped but whose kernel still acknowledges packets;
# grpc.http2.ping_timeout_ms does.
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def open_channel(target: str, tls: ClientTls | None = None) -> grpc.aio.Channel:
    """A channel to a peer.

    Args:
        target: "host:port" or any gRPC name.
        tls: with which certificate, and whose is expected; None = in plain text.
    """
    if tls is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, tls.credentials(), options=(*CHANNEL_OPTIONS, *tls.options))


async def is_ready(channel: grpc.aio.Channel, service: str, *, timeout_s: float) -> bool:
    """Whether the peer answers that a service is ready; False when it cannot be asked.

    Args:
        channel: to the peer.
        service: full name such as "triserve.v1.ComputeService"; "" asks only whether the process is alive.
        timeout_s: how long to wait for the answer.
    """
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        response = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
    except grpc.aio.AioRpcError:
        return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)
