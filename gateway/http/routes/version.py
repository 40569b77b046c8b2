"""GET /version."""

from __future__ import annotations

from importlib import metadata

from aiohttp import web

from gateway.http.answering import json_response
from gateway.http.paths import add_route


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "GET", "/version", version)


async def version(request: web.Request) -> web.Response:
    """The version of the package. For those with a key, where keys are: it tells an attacker what to look up."""
    return json_response({"version": metadata.version("triserve")})
