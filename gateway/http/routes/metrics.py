"""GET /metrics."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from gateway.context import GATEWAY, GRANT
from gateway.errors import Forbidden


def add_to(app: web.Application) -> None:
    """Adds the route."""
    app.router.add_get("/metrics", metrics)


async def metrics(request: web.Request) -> web.Response:
    """Everything measured, in Prometheus's text format. Names processes and tells of all tenants together: for operators' keys alone.

    Raises:
        Forbidden: the key is not granted it.
    """
    if not request[GRANT].reads_metrics:
        raise Forbidden("this key may not read /metrics: its line in the file of keys does not end in `metrics`")
    body = generate_latest(request.app[GATEWAY].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})
