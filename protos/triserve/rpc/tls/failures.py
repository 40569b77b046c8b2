"""Why a connection did not come about, in words for the log. Pure."""

from __future__ import annotations

import re

import grpc

_REFUSED = re.compile(r"CERTIFICATE_VERIFY_FAILED(?:: (?P<why>[^:]+))?")
# Of gRPC's words; what comes before it and the address say only that it failed.
_LAST_ERROR = re.compile(r".*last error: \w+: (?:ipv[46]:\S+?: )?(?P<why>.+)", re.DOTALL)

# A connection that ends while it is written to or read from has other words for each moment.
_HUNG_UP = re.compile(r"Socket closed|connection reset|broken pipe|endpoint closing|handshake (?:read|write) failed", re.IGNORECASE)


def why_not_connected(error: grpc.aio.AioRpcError, *, server_name: str | None) -> str:
    """What gRPC tells, where it has to do with TLS; empty where it has not, as where nobody listens.

    Args:
        error: of a call.
        server_name: that the certificate of the server must have; None = this end speaks plain text.
    """
    details = error.details() or ""
    match = _LAST_ERROR.fullmatch(details)
    if error.code() is not grpc.StatusCode.UNAVAILABLE or match is None:
        return ""
    why = match["why"]
    is_hung_up_on = _HUNG_UP.search(why) is not None
    if server_name is None:
        return "it closed the connection at once, as one does that speaks TLS and is spoken to without" if is_hung_up_on else ""
    if refused := _REFUSED.search(why):
        return f"its certificate is refused: {refused['why'] or 'it is not of our CA'}"
    if "Hostname Verification" in why or "Peer name" in why:
        return f"its certificate is not of {server_name}"
    if "WRONG_VERSION_NUMBER" in why:
        return "it speaks no TLS"
    if is_hung_up_on:
        return "it closed the connection in the handshake, as one does that refuses our certificate, or speaks no TLS"
    return why if "handshake" in why.lower() else ""
