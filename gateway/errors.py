"""Errors only a gateway has: what can be wrong with a name, a route or an HTTP body.

    NotFound
    ├── ModelNotFound          404  a model that is not served here
    ├── RouteNotFound          404  a path that is none
    └── NotCached              504  an answer that is not kept, where only a kept one is wanted (RFC 9111, 5.2.1.7)
    InvalidRequest
    ├── MethodNotAllowed       405  a path that does not take this method
    ├── BodyTimeout            408  a body that does not come
    ├── BodyTooLarge           413  more bytes than are read
    └── UnsupportedMediaType   415  a body that is no JSON
    Forbidden                  403  what this key, or anybody, may not ask
    ├── CrossSiteRequest       403  a request another web site made in a visitor's browser
    └── UnknownHost            403  a request for a host that is not this one

They keep the gRPC status and the reason of the class they come from.
"""

from __future__ import annotations

import grpc

from triserve.rpc.errors import InvalidRequest, NotFound, ServiceError


class ModelNotFound(NotFound):
    """A model that is not served here."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the model {name[:200]!r} is not served here", field="model")


class RouteNotFound(NotFound):
    """A path that is none of ours."""


class NotCached(NotFound):
    """An answer that is not kept, where only a kept one is wanted."""

    http_status = 504


class MethodNotAllowed(InvalidRequest):
    """A path of ours that does not take this method."""

    http_status = 405


class BodyTimeout(InvalidRequest):
    """A body that does not come to its end in time."""

    http_status = 408


class BodyTooLarge(InvalidRequest):
    """A body of more bytes than are read."""

    http_status = 413


class UnsupportedMediaType(InvalidRequest):
    """A body that is no JSON, or is compressed."""

    http_status = 415


class Forbidden(ServiceError):
    """What this client may not ask."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    reason = "FORBIDDEN"


class CrossSiteRequest(Forbidden):
    """A request that a page of another web site made in a visitor's browser."""


class UnknownHost(Forbidden):
    """A request for a host that is not this one, as a browser makes whose name server was made to lie."""
