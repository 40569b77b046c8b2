"""One HTTP connection: how long it may be idle, what becomes of it when its client sends no more, and of what is no HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from itertools import chain, repeat

from aiohttp import web
from aiohttp.http import HttpProcessingError, HttpVersion11

from gateway.context import WAKE
from gateway.http.error_map import error_body
from gateway.http.middleware import SECURITY_HEADERS
from triserve.rpc.errors import InvalidRequest

logger = logging.getLogger(__name__)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Of malformed requests one line is logged in so many seconds, with the number of all.
_LOG_EVERY_S = 10.0


class MalformedRequests:
    """Counts requests that are no HTTP and logs of them now and then."""

    def __init__(self) -> None:
        self._unlogged = 0
        self._next_at = 0.0

    def note(self, remote: str, error: BaseException | None, now: float) -> None:
        """Counts one.

        Args:
            remote: address of the client.
            error: what is wrong with it; only its kind is logged, for the rest is the client's.
            now: seconds of a clock that never falls.
        """
        self._unlogged += 1
        if now >= self._next_at:
            logger.warning("%d requests were no HTTP, the latest from %s: %s", self._unlogged, remote, type(error).__name__)
            self._unlogged = 0
            self._next_at = now + _LOG_EVERY_S


class Connection(web.RequestHandler):
    """A connection that is answered although its client has closed its own half.

    A client that has left altogether looks the same until something is written to it. So it is written to: interim responses, which every
    client of HTTP/1.1 passes over, until the answer begins, and comments between the events of a stream that has begun. The first makes the
    other side's system say that nobody is there.

    Args:
        server: of the application.
        malformed: told of what is no HTTP.
        idle_timeout_s: until a request is complete, from the start or from the end of the one before.
        on_connected: called when the connection is there, after the handshake where there is one.
    """

    __slots__ = ("_malformed", "_on_connected", "_pauses_s", "_probe")

    def __init__(
        self, server: web.Server, *, malformed: MalformedRequests, idle_timeout_s: float, on_connected: Callable[[], None]
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=idle_timeout_s,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's own way to have none
            # What is compressed is refused, not unpacked first.
            auto_decompress=False,
        )
        self._malformed = malformed
        self._on_connected = on_connected
        self._probe: asyncio.TimerHandle | None = None
        self._pauses_s: Iterator[float] = chain((0.02, 0.1, 0.5), repeat(2.0))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._on_connected()
        super().connection_made(transport)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp always closes
        """The client sends no more. Whether the connection stays for an answer that is under way."""
        is_idle = self._waiter is not None and not self._waiter.done()
        # Neither asyncio nor uvloop can keep half of a connection over TLS.
        is_tls = self.transport is not None and self.transport.get_extra_info("ssl_object") is not None
        if is_idle or is_tls or not self._can_be_answered():
            return False
        self.close()
        self._ask_whether_it_is_there()
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is over."""
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to faults that no handler of ours has seen."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        self._malformed.note(request.remote or "nobody", exc, asyncio.get_running_loop().time())
        body = error_body(InvalidRequest("the request is not HTTP that can be understood"))
        response = web.json_response(body, status=status, headers=SECURITY_HEADERS)
        response.force_close()
        return response

    def _can_be_answered(self) -> bool:
        """Whether the request, if its handler has begun, is whole and of a client that passes over interim responses."""
        request = self._current_request
        return request is None or (request.content.is_eof() and request.version >= HttpVersion11)

    def _ask_whether_it_is_there(self) -> None:
        request, transport = self._current_request, self.transport
        self._probe = None
        if transport is None:
            return
        if request is not None and request.writer.output_size:
            wake = request.get(WAKE)
            if wake is None:
                return
            wake()
        elif not self._can_be_answered():
            transport.close()
            return
        elif request is not None:
            transport.write(_CONTINUE)
        self._probe = asyncio.get_running_loop().call_later(next(self._pauses_s), self._ask_whether_it_is_there)
