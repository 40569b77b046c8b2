"""Errors of the pipeline, one class per thing that can go wrong for a caller.

    ServiceError
    ├── InvalidRequest      INVALID_ARGUMENT     400  a field is wrong; names it and its limit
    │   └── PromptTooLong   INVALID_ARGUMENT     400  more tokens than fit
    ├── Unauthenticated     UNAUTHENTICATED      401  no key, or not one of ours
    ├── PeerRefused         PERMISSION_DENIED    403  a process that this stage does not serve
    ├── NotFound            NOT_FOUND            404  a model or route that is not served
    ├── FingerprintMismatch FAILED_PRECONDITION  503  peers that serve different models
    ├── Overloaded          RESOURCE_EXHAUSTED   429  capacity exists and is taken; try again
    ├── Unavailable         UNAVAILABLE          503  no capacity: a stage is gone or leaving
    ├── DeadlineExceeded    DEADLINE_EXCEEDED    504  the request's time is over
    ├── Cancelled           CANCELLED            499  the caller left
    └── Internal            INTERNAL             500  our fault; details are in the log, not in the message

Each maps to one gRPC status, one HTTP status and one stable reason, so that the same failure reads the same as an RPC
status, as an `Error` on a multiplexed stream, as JSON and as an event of a stream.
"""

from __future__ import annotations

from typing import ClassVar

import grpc

from triserve.v1 import common_pb2


class ServiceError(Exception):
    """A failure a caller can be told about.

    Args:
        message: for people; names the field and the limit where there is one, and carries no prompt.
        field: the request's field at fault, in the caller's spelling; empty if none.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidRequest(ServiceError):
    """A field of the request is wrong."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400
    reason = "INVALID_REQUEST"


class PromptTooLong(InvalidRequest):
    """The prompt, or prompt and answer together, are longer than the model's context."""

    reason = "PROMPT_TOO_LONG"

    @classmethod
    def of(cls, *, got: int, limit: int, field: str) -> PromptTooLong:
        """The usual wording, from the two numbers."""
        return cls(f"{field} has {got} tokens, the limit is {limit}", field=field)


class Unauthenticated(ServiceError):
    """No API key, or one that is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401
    reason = "UNAUTHENTICATED"


class PeerRefused(ServiceError):
    """The certificate is good, and of a process that has no business here."""

    code = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403
    reason = "PEER_REFUSED"


class NotFound(ServiceError):
    """A model or route that is not served here."""

    code = grpc.StatusCode.NOT_FOUND
    http_status = 404
    reason = "NOT_FOUND"


class FingerprintMismatch(ServiceError):
    """Two stages serve different tokenizers or weights."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 503
    reason = "FINGERPRINT_MISMATCH"


class Overloaded(ServiceError):
    """Capacity exists and is taken."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    reason = "OVERLOADED"


class Unavailable(ServiceError):
    """There is no capacity: a stage is gone, not ready or leaving."""

    code = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    reason = "UNAVAILABLE"


class DeadlineExceeded(ServiceError):
    """The request's time is over."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ServiceError):
    """The caller left."""

    code = grpc.StatusCode.CANCELLED
    http_status = 499
    reason = "CANCELLED"


class Internal(ServiceError):
    """A fault of ours. The message says no more than that."""


_CLASSES: tuple[type[ServiceError], ...] = (
    InvalidRequest,
    PromptTooLong,
    Unauthenticated,
    PeerRefused,
    NotFound,
    FingerprintMismatch,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    Cancelled,
    Internal,
)
_BY_REASON = {cls.reason: cls for cls in _CLASSES}
# Several classes may share a status; the first in the tree is the general one.
_BY_CODE = {cls.code: cls for cls in reversed(_CLASSES)}
_CODE_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

REASON_KEY = "triserve-reason"
FIELD_KEY = "triserve-field"


def to_proto(error: ServiceError) -> common_pb2.Error:
    """The error as it travels on a multiplexed stream."""
    return common_pb2.Error(code=error.code.value[0], reason=error.reason, message=error.message, field=error.field)


def from_proto(error: common_pb2.Error) -> ServiceError:
    """The error a peer sent; an unknown reason falls back to the status code, an unknown code to `Internal`."""
    cls = _BY_REASON.get(error.reason) or _BY_CODE.get(_CODE_BY_NUMBER.get(error.code, grpc.StatusCode.INTERNAL), Internal)
    return cls(error.message, field=error.field)


def from_rpc_error(error: grpc.aio.AioRpcError, *, peer: str) -> ServiceError:
    """The error behind a failed RPC.

    Args:
        error: what the stub raised.
        peer: the stage that was called, for the message when the failure is the transport's and not the peer's.
    """
    metadata = {key: value for key, value in (error.trailing_metadata() or ()) if isinstance(value, str)}
    reason = metadata.get(REASON_KEY)
    if reason in _BY_REASON:
        return _BY_REASON[reason](error.details() or "", field=metadata.get(FIELD_KEY, ""))
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{peer} is not reachable")
    if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return _BY_CODE[error.code()](f"{peer} did not answer")
    return Internal(f"{peer} failed")
