"""Lets pages of other web sites call, where the operator names them: answers to preflights, headers on everything else."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from aiohttp import web

ANY_ORIGIN = "*"
_PREFLIGHT_AGE_S = "600"
_SHOWN_HEADERS = "X-Request-Id, X-Client-Request-Id, X-Triserve-Cache, X-Triserve-Cache-Similarity, Age, Retry-After"


class Cors:
    """Which pages may call.

    Args:
        origins: as browsers write them, `https://example.org`; `*` = all; empty = none but the gateway's own.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def allows(self, origin: str | None) -> bool:
        """Whether pages of an origin may call."""
        return origin is not None and (origin in self._origins or ANY_ORIGIN in self._origins)

    def add_headers(self, request_headers: Mapping[str, str], response: web.StreamResponse) -> None:
        """Tells the browser that the page may read the response."""
        if not self._origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request_headers.get("Origin")
        if origin is not None and self.allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = _SHOWN_HEADERS

    def preflight_headers(self, request_headers: Mapping[str, str], methods: Collection[str]) -> dict[str, str]:
        """What a browser that asks beforehand is told besides: empty if it does not ask, or its page may not call."""
        if "Access-Control-Request-Method" not in request_headers or not self.allows(request_headers.get("Origin")):
            return {}
        return {
            "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
            # Whatever is asked for: client libraries send headers of their own, and none of them gives a page more than its key does.
            "Access-Control-Allow-Headers": request_headers.get("Access-Control-Request-Headers", ""),
            "Access-Control-Max-Age": _PREFLIGHT_AGE_S,
        }
