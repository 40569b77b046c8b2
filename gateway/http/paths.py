"""How a route may be spelt: clients' base addresses end in /v1 or do not, and some put a slash at the end."""

from __future__ import annotations

from aiohttp import web

from gateway.http.middleware import Handler

_VERSION = "/v1"


def add_route(app: web.Application, method: str, path: str, handler: Handler) -> None:
    """Adds a route under its path with and without /v1, with and without a slash at the end. GET answers HEAD too."""
    plain = path.removeprefix(_VERSION)
    for spelt in (path, f"{path}/", *([plain, f"{plain}/"] if plain != path else [_VERSION + path, f"{_VERSION}{path}/"])):
        if method == "GET":
            app.router.add_get(spelt, handler)
        else:
            app.router.add_route(method, spelt, handler)
