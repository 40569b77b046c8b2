"""Responses are read the same whatever pieces they came in; broken ones are told apart."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.measuring.http_transcript import BadResponse, Piece, TimedEvent, read_response

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def at_once(data: bytes) -> list[Piece]:
    return [Piece(0.0, data)]


@given(st.lists(st.binary(min_size=1, max_size=40)), st.lists(st.integers(0, 500)))
def test_a_chunked_body_does_not_depend_on_the_pieces_it_comes_in(chunks: list[bytes], cuts: list[int]) -> None:
    data = HEAD + b"".join(map(chunk, chunks)) + b"0\r\n\r\n"
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [Piece(float(number), data[start:stop]) for number, (start, stop) in enumerate(itertools.pairwise(places))]
    assert read_response(pieces).body == b"".join(chunks)


def test_an_event_has_the_time_of_its_last_byte() -> None:
    pieces = [
        Piece(1.0, HEAD + chunk(b"data: a\n\nda")[:-2]),
        Piece(2.0, b"\r\n" + chunk(b"ta: b\n")),
        Piece(3.0, chunk(b"\ndata: c\n\n") + b"0\r\n\r\n"),
    ]
    assert read_response(pieces).events == [TimedEvent(1.0, b"a"), TimedEvent(3.0, b"b"), TimedEvent(3.0, b"c")]


def test_a_body_with_a_length_is_read() -> None:
    response = read_response(at_once(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"))
    assert (response.status, response.body, response.events) == (404, b"no", [])


def test_a_body_that_ends_with_the_connection_is_read() -> None:
    assert read_response(at_once(b"HTTP/1.0 200 OK\r\n\r\nall")).body == b"all"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "without a response"),
        (b"HTTP/1.1 200 OK\r\n", "before the head"),
        (b"SSH-2.0\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno", "2 of 9 bytes"),
        (HEAD + b"zz\r\n", "no size"),
        (HEAD + chunk(b"a"), "in the middle"),
        (HEAD + b"5\r\nab", "in the middle"),
    ],
)
def test_a_broken_response_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadResponse, match=message):
        read_response(at_once(data))
