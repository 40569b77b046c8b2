"""The one table from our errors to OpenAI's; the same for JSON bodies and for events of a stream."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from gateway.errors import (
    BodyTooLarge,
    CrossSiteRequest,
    Forbidden,
    MethodNotAllowed,
    ModelNotFound,
    NotCached,
    RouteNotFound,
    UnknownHost,
    UnsupportedMediaType,
)
from triserve.rpc.errors import (
    Cancelled,
    DeadlineExceeded,
    FingerprintMismatch,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    Unauthenticated,
    Unavailable,
)

logger = logging.getLogger(__name__)


class OpenAIError(NamedTuple):
    """How OpenAI's clients know an error."""

    type: str
    code: str


_INVALID, _UNAVAILABLE, _SERVER = "invalid_request_error", "service_unavailable_error", "server_error"

# Looked up along the class's own line of descent, so that a class without an entry reads as what it derives from.
_TABLE: dict[type[ServiceError], OpenAIError] = {
    InvalidRequest: OpenAIError(_INVALID, "invalid_request"),
    PromptTooLong: OpenAIError(_INVALID, "context_length_exceeded"),
    BodyTooLarge: OpenAIError(_INVALID, "body_too_large"),
    UnsupportedMediaType: OpenAIError(_INVALID, "unsupported_media_type"),
    MethodNotAllowed: OpenAIError(_INVALID, "method_not_allowed"),
    Unauthenticated: OpenAIError("authentication_error", "invalid_api_key"),
    Forbidden: OpenAIError("permission_error", "not_allowed"),
    CrossSiteRequest: OpenAIError("permission_error", "cross_site_request"),
    UnknownHost: OpenAIError("permission_error", "unknown_host"),
    NotFound: OpenAIError("not_found_error", "not_found"),
    ModelNotFound: OpenAIError("not_found_error", "model_not_found"),
    RouteNotFound: OpenAIError("not_found_error", "route_not_found"),
    NotCached: OpenAIError("not_found_error", "not_cached"),
    Overloaded: OpenAIError("rate_limit_error", "overloaded"),
    Unavailable: OpenAIError(_UNAVAILABLE, "unavailable"),
    FingerprintMismatch: OpenAIError(_UNAVAILABLE, "fingerprint_mismatch"),
    DeadlineExceeded: OpenAIError("timeout_error", "deadline_exceeded"),
    Cancelled: OpenAIError(_INVALID, "cancelled"),
    ServiceError: OpenAIError(_SERVER, "internal_error"),
}

# Seconds after which a client may try again: a place comes free soon, a process comes back later.
_RETRY_AFTER_S = {429: 1, 503: 2}


def openai_error(error: ServiceError) -> OpenAIError:
    """Type and code of an error."""
    return next(_TABLE[cls] for cls in type(error).__mro__ if cls in _TABLE)


def error_body(error: ServiceError) -> dict[str, Any]:
    """The body OpenAI's clients expect."""
    kind = openai_error(error)
    return {"error": {"message": error.message, "type": kind.type, "param": error.field or None, "code": kind.code}}


def error_headers(error: ServiceError) -> dict[str, str]:
    """Headers that go with an error: when to try again, if that may help."""
    seconds = _RETRY_AFTER_S.get(error.http_status)
    return {} if seconds is None else {"Retry-After": str(seconds)}


def as_service_error(error: Exception, *, request_id: str) -> ServiceError:
    """The error as a client may see it. What is not meant for clients is logged with its stack and becomes `Internal`."""
    if isinstance(error, ServiceError):
        return error
    logger.error("%s failed", request_id, exc_info=error)
    return Internal("internal error")
