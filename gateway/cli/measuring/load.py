"""Sends requests at their times or by so many at once, and keeps what comes back, unread, with its time.

One socket per request and nothing but a clock on the way of its bytes: the load often comes from the machine that is measured. Memory grows by
some 300 bytes for each delta of the run.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from gateway.cli.measuring import any_server
from gateway.cli.measuring.http_transcript import Piece
from gateway.cli.measuring.measurement import Failed, Outcome, measure
from gateway.cli.measuring.workload import PlannedRequest

T = TypeVar("T")


class Target(NamedTuple):
    """Where and how to ask."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    # Path before those of the API.
    path: str
    model: str
    # Empty = none.
    api_key: str
    timeout_s: float
    # Whether exact answers can be asked for, as of Triserve: else what any server of OpenAI's API answers is measured.
    exact: bool
    # 0 = greedy; above, each request draws with a seed of its own, so that the same seed of the run asks for the same answers.
    temperature: float


def make_target(
    url: str, *, model: str, api_key: str, timeout_s: float, ca: Path | None = None, exact: bool = True, temperature: float = 0.0
) -> Target:
    """A server; `ca` is as of `ApiClient`.

    Raises:
        ValueError: the URL is not http:// or https:// with a host.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url} is no http:// or https:// address")
    tls = ssl.create_default_context(cafile=ca) if parts.scheme == "https" else None
    port = parts.port or (443 if tls else 80)
    return Target(parts.hostname, port, tls, parts.path.rstrip("/"), model, api_key, timeout_s, exact, temperature)


def request_bytes(target: Target, request: PlannedRequest) -> bytes:
    """The HTTP request: a stream of so many tokens that no cache answers."""
    path = "/v1/completions" if target.exact else any_server.PATH
    fields = (completion_body if target.exact else any_server.chat_body)(target.model, request)
    fields |= {"temperature": target.temperature} | ({"seed": request.index} if target.temperature else {})
    body = json.dumps(fields).encode()
    headers = {
        "Host": f"{target.host}:{target.port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Accept": "text/event-stream",
        "Cache-Control": "no-cache, no-store",
        "Connection": "close",
    }
    if target.api_key:
        headers["Authorization"] = f"Bearer {target.api_key}"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {target.path}{path} HTTP/1.1\r\n{head}\r\n".encode() + body


def completion_body(model: str, request: PlannedRequest) -> dict[str, Any]:
    """The body of a /v1/completions request that measures: exactly so many tokens, whatever they are."""
    return {
        "model": model,
        "prompt": request.prompt_token_ids,
        "max_tokens": request.output_tokens,
        "min_tokens": request.output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


class _Collector(asyncio.Protocol):
    """Keeps what arrives on a socket until it is closed."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.data: list[bytes] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())
        self.data.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The response is complete, or never will be."""
        if not self.closed.done():
            self.closed.set_result(None)


class Exchange(NamedTuple):
    """A request and all that came back, unread."""

    request: PlannedRequest
    # Seconds on the clock of `time.perf_counter`, as are those of the pieces.
    sent_at_s: float
    times: list[float]
    data: list[bytes]
    # Why nothing came back, or not everything; empty = the connection was closed by the server.
    problem: str

    @property
    def looks_well(self) -> bool:
        """Whether the server answered 200, as far as one can tell without reading on."""
        return not self.problem and bool(self.data) and self.data[0].startswith(b"HTTP/1.1 200")


def read_exchange(exchange: Exchange, *, began_s: float, exact: bool = True) -> Outcome:
    """Reads and checks what came back.

    Args:
        exchange: with one request.
        began_s: the run's zero on the clock of `time.perf_counter`.
        exact: see `Target`.
    """
    if exchange.problem:
        return Failed(exchange.request, exchange.problem)
    pieces = [Piece(at_s - began_s, data) for at_s, data in zip(exchange.times, exchange.data, strict=True)]
    return measure(exchange.request, exchange.sent_at_s - began_s, pieces, None if exact else any_server.read_times)


async def send(target: Target, request: PlannedRequest) -> Exchange:
    """Sends one request and waits for all of its answer."""
    message = request_bytes(target, request)
    loop = asyncio.get_running_loop()
    times: list[float] = []
    data: list[bytes] = []
    problem = ""
    sent_at_s = time.perf_counter()
    try:
        async with asyncio.timeout(target.timeout_s):
            transport, collector = await loop.create_connection(_Collector, target.host, target.port, ssl=target.tls)
            times, data = collector.times, collector.data
            try:
                transport.write(message)
                await collector.closed
            finally:
                transport.abort()
    except TimeoutError:
        problem = f"no whole answer within {target.timeout_s:g} s"
    except OSError as error:
        problem = f"no connection: {error.strerror or error}"
    return Exchange(request, sent_at_s, times, data, problem)


async def run_closed(
    requests: Sequence[PlannedRequest],
    ask: Callable[[PlannedRequest], Awaitable[T]],
    *,
    concurrency: int,
    take: Callable[[T], None],
) -> None:
    """Keeps so many requests under way until all are done, whatever their arrivals.

    Args:
        requests: sent in this order.
        ask: sends one and waits for its end.
        concurrency: at least 1.
        take: is given what came of each, as it comes.
    """
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            take(await ask(request))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(requests))):
            group.create_task(work())


async def run_open(
    requests: Sequence[PlannedRequest],
    ask: Callable[[PlannedRequest], Awaitable[T]],
    *,
    take: Callable[[T], None],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Sends each request at its arrival, however many are under way, and waits for all.

    Args:
        requests: in the order of their arrivals.
        ask: sends one and waits for its end.
        take: is given what came of each, as it comes.
        clock: seconds, never falling.
        sleep: waits so many seconds.
    """
    began = clock()

    async def work(request: PlannedRequest) -> None:
        take(await ask(request))

    async with asyncio.TaskGroup() as group:
        for request in requests:
            early_s = began + request.arrival_s - clock()
            if early_s > 0:
                await sleep(early_s)
            group.create_task(work(request))
