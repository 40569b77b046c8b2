"""GET /openapi.json."""

from __future__ import annotations

from aiohttp import web

from gateway.http.answering import json_response
from gateway.http.openapi.document import document
from gateway.http.paths import add_route


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "GET", "/openapi.json", openapi)


async def openapi(request: web.Request) -> web.Response:
    """This API as an OpenAPI document. For those with a key, as /version."""
    return json_response(document())
