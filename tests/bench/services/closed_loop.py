"""Chat clients that cost little: connections that are kept, each with one request after the other, in a process of their own.

They read answers as bytes. The first answer of each connection, and one in a hundred after it, is taken apart and its text looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import NamedTuple, cast

import uvloop

_CHECK_EVERY = 100
_PATIENCE_S = 120.0
# What ends the body of a response in chunks.
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_SYSTEM = "You are a helpful assistant. Answer in short sentences, and say so where you do not know."
_QUESTION = "What is the difference between a process and a thread, and when does a program have more than one of either?"


class Load(NamedTuple):
    """What is asked.

    Attributes:
        port: Of the gateway on this machine.
        stream: Whether answers are streamed.
        num_requests: Of all connections together.
        connections: Requests under way at once.
        max_tokens: Of each answer.
        text: What each answer must be.
    """

    port: int
    stream: bool
    num_requests: int
    connections: int
    max_tokens: int
    text: str


class Counts(NamedTuple):
    """What came back."""

    seconds: float
    events: int
    ttft_ms_p50: float
    ttft_ms_p99: float


def request_bytes(load: Load) -> bytes:
    """The request as every connection sends it."""
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _QUESTION}]
    body = json.dumps({"messages": messages, "max_tokens": load.max_tokens, "stream": load.stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def streamed_text(response: bytes) -> str:
    """The text of a response in events.

    Raises:
        AssertionError: it is none, or does not end as one.
    """
    assert response.startswith(b"HTTP/1.1 200 "), response[:500]
    body = b"".join(response.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2])
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]", events[-1]
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert choices[-1]["finish_reason"] == "length", choices[-1]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def whole_text(response: bytes) -> str:
    """The text of a response in one body.

    Raises:
        AssertionError: it is none.
    """
    assert response.startswith(b"HTTP/1.1 200 "), response[:500]
    (choice,) = json.loads(response.partition(b"\r\n\r\n")[2])["choices"]
    assert choice["finish_reason"] == "length", choice
    text: str = choice["message"]["content"]
    return text


class Clients:
    """All connections of a load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.request = request_bytes(load)
        self.left = load.num_requests
        self.unanswered = load.num_requests
        self.events = 0
        self.ttft_s: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Counts:
        """Asks everything.

        Raises:
            AssertionError: an answer is not what it must be, or a connection was lost.
        """
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        connect = (loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.load.port) for _ in range(self.load.connections))
        transports = [transport for transport, _ in await asyncio.gather(*connect)]
        async with asyncio.timeout(_PATIENCE_S):
            await self.done
        took_s = time.perf_counter() - began
        for transport in transports:
            transport.close()
        ordered = sorted(self.ttft_s)
        return Counts(took_s, self.events, 1000 * ordered[len(ordered) // 2], 1000 * ordered[len(ordered) * 99 // 100])

    def take(self) -> bool:
        """Whether another request is to be sent."""
        self.left -= 1
        return self.left >= 0

    def answered(self, response: bytes, ttft_s: float, *, is_checked: bool) -> None:
        """Looks at an answer."""
        self.ttft_s.append(ttft_s)
        self.events += response.count(b"data: {")
        try:
            if is_checked:
                text = streamed_text(response) if self.load.stream else whole_text(response)
                assert text == self.load.text, f"{text[:200]!r} is not the answer"
        except AssertionError as error:
            self.fail(error)
        self.unanswered -= 1
        if not self.unanswered and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """Ends the run."""
        if not self.done.done():
            self.done.set_exception(error)


class _Connection(asyncio.Protocol):
    """One request after the other."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._response = bytearray()
        self._asked_at = 0.0
        self._first_at = 0.0
        self._num_asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is none by its class.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        if not self._response:
            self._first_at = time.perf_counter()
        self._response += data
        if not self._is_whole():
            return
        is_checked = self._num_asked % _CHECK_EVERY == 1
        self._clients.answered(bytes(self._response), self._first_at - self._asked_at, is_checked=is_checked)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.fail(exc or ConnectionError("the gateway has closed a connection"))

    def _ask(self) -> None:
        self._response.clear()
        if self._clients.take():
            self._num_asked += 1
            self._asked_at = time.perf_counter()
            self._transport.write(self._clients.request)

    def _is_whole(self) -> bool:
        if self._clients.load.stream:
            return self._response.endswith(_LAST_CHUNK)
        head, found, body = self._response.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return bool(found) and len(body) == int(length)


def main() -> None:
    """Runs a load that is given as JSON and prints what came back as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", type=json.loads, help="the fields of Load")
    load = Load(**parser.parse_args().load)

    async def run() -> Counts:
        return await Clients(load).run()

    print(json.dumps(uvloop.run(run())._asdict()))


if __name__ == "__main__":
    main()
