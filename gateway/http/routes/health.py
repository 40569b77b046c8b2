"""GET /health, and /ping, under which some hosts look for it."""

from __future__ import annotations

from aiohttp import web

from gateway.context import GATEWAY
from gateway.http.answering import json_response
from gateway.http.error_map import error_headers
from gateway.http.middleware import public
from gateway.http.paths import add_route
from triserve.rpc.errors import Unavailable


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "GET", "/health", health)
    for method in ("GET", "POST"):
        add_route(app, method, "/ping", health)


@public
async def health(request: web.Request) -> web.Response:
    """200 when requests are served; else 503 with the stages that are missing. Says how many processes there are, not where."""
    gateway = request.app[GATEWAY]
    draining = gateway.admission.closed
    ready = gateway.fleet.ready and not draining
    body = {
        "status": "draining" if draining else "ready" if ready else "not ready",
        "missing": gateway.fleet.missing,
        "tokenizers": {"ready": sum(peer.ready for peer in gateway.fleet.tokenizers), "known": len(gateway.fleet.tokenizers)},
        "computes": {"ready": sum(peer.ready for peer in gateway.fleet.computes), "known": len(gateway.fleet.computes)},
        # What serves together, the newest first.
        "groups": [
            {
                "name": group.key.name,
                "complete": group.is_complete,
                "tokenizers": len(group.members.tokenizers),
                "computes": len(group.members.computes),
            }
            for group in gateway.fleet.groups
        ],
    }
    if ready:
        return json_response(body)
    return json_response(body, status=503, headers=error_headers(Unavailable("")))
