"""Errors in Anthropic's form."""

from __future__ import annotations

from typing import Any, NamedTuple

from triserve.rpc.errors import PromptTooLong, ServiceError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# What these clients know as a server that has no room now.
_OVERLOADED = 529


class ErrorAnswer(NamedTuple):
    """How a client is told of an error."""

    status: int
    body: dict[str, Any]


def error_answer(error: ServiceError, request_id: str) -> ErrorAnswer:
    """Status and body of an error.

    Args:
        error: as clients may see it.
        request_id: the server's.
    """
    status = error.http_status
    # Clients know by these words that they must shorten a prompt.
    message = f"prompt is too long: {error.message}" if isinstance(error, PromptTooLong) else error.message
    said = {"type": _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error"), "message": message}
    return ErrorAnswer(_OVERLOADED if status == 503 else status, {"type": "error", "error": said, "request_id": request_id})
