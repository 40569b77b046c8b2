"""GET / and /static: the chat page."""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from gateway.errors import RouteNotFound
from gateway.http.middleware import public

_FOLDER = Path(__file__).parents[2] / "static"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Scripts, styles and connections of this server alone, none of them inline. Where the browser knows trusted types, text cannot become
# markup at all: no policy may make it so.
_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
}
_FILES: web.AppKey[dict[str, tuple[str, bytes]]] = web.AppKey("files", dict)


def add_to(app: web.Application) -> None:
    """Adds the routes. The files are read now and served from memory: no path of a request ever reaches the file system."""
    app[_FILES] = {path.name: (_TYPES[path.suffix], path.read_bytes()) for path in _FOLDER.iterdir() if path.suffix in _TYPES}
    app.router.add_get("/", index)
    app.router.add_get("/static/{name}", static)


@public
async def index(request: web.Request) -> web.Response:
    """The chat page."""
    return _file(request, "index.html")


@public
async def static(request: web.Request) -> web.Response:
    """One of the page's own files."""
    return _file(request, request.match_info["name"])


def _file(request: web.Request, name: str) -> web.Response:
    found = request.app[_FILES].get(name)
    if found is None:
        raise RouteNotFound(f"{request.path[:200]} is no file of this server")
    content_type, body = found
    return web.Response(body=body, content_type=content_type, charset="utf-8", headers=_HEADERS)
