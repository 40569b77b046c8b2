"""Reads the bytes of one HTTP/1.1 response after the fact, and says when each event of its stream was complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.cli.event_stream import EventCutter

_CRLF = b"\r\n"


class Piece(NamedTuple):
    """Bytes as they came from the socket."""

    # Seconds on any clock.
    at_s: float
    data: bytes


class TimedEvent(NamedTuple):
    """One event of a stream."""

    # When its last byte came.
    at_s: float
    data: bytes


class Response(NamedTuple):
    """What a server answered."""

    status: int
    # Events of the body, if it is a stream of events.
    events: list[TimedEvent]
    # The whole body.
    body: bytes


class BadResponse(Exception):
    """The bytes are no whole HTTP response."""


def read_response(pieces: Sequence[Piece]) -> Response:
    """The response in the bytes of a connection that was closed after it.

    Raises:
        BadResponse: the head is malformed, or the body ends before its end.
    """
    received = b""
    for index, piece in enumerate(pieces):
        received += piece.data
        head, separator, rest = received.partition(_CRLF + _CRLF)
        if separator:
            status, headers = _read_head(head)
            body = [Piece(piece.at_s, rest), *pieces[index + 1 :]]
            return _read_body(status, headers, body)
    raise BadResponse("the connection ended before the head of the response" if received else "the connection ended without a response")


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    status_line, *lines = head.split(_CRLF)
    words = status_line.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise BadResponse("the response is not HTTP/1.1")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    return int(words[1]), headers


def _read_body(status: int, headers: dict[bytes, bytes], pieces: Sequence[Piece]) -> Response:
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        pieces = list(_unchunked(pieces))
    body = b"".join(piece.data for piece in pieces)
    length = headers.get(b"content-length")
    if length is not None and len(body) < int(length):
        raise BadResponse(f"the connection ended after {len(body)} of {int(length)} bytes")
    events: list[TimedEvent] = []
    if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
        cutter = EventCutter()
        events = [TimedEvent(piece.at_s, data) for piece in pieces for data in cutter.feed(piece.data)]
    return Response(status, events, body)


def _unchunked(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """The payload of a chunked body, with the times of the pieces it came in."""
    rest = b""
    # Bytes of the chunk under way that are still to come, its line's end included; 0 = a chunk's head is next.
    left = 0
    for at_s, data in pieces:
        rest += data
        payload: list[bytes] = []
        while rest:
            if left == 0:
                size, separator, after = rest.partition(_CRLF)
                if not separator:
                    break
                try:
                    left = int(size.split(b";")[0], 16) + len(_CRLF)
                except ValueError:
                    raise BadResponse("a chunk of the response has no size") from None
                rest = after
                if left == len(_CRLF):
                    yield Piece(at_s, b"".join(payload))
                    return
            taken, rest = rest[:left], rest[left:]
            payload.append(taken[: max(0, left - len(_CRLF))])
            left -= len(taken)
        yield Piece(at_s, b"".join(payload))
    raise BadResponse("the connection ended in the middle of the response")
