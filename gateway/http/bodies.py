"""Reads the bodies of HTTP requests: bytes counted as they come, JSON and fields checked off the event loop where they are many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web

from gateway.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from gateway.flow.limits import Limits
from gateway.flow.shares import Holding, Shares
from gateway.http.json_body import parse_json_object
from gateway.http.openai.parsing import parse_body
from gateway.http.openai.values import Body

B = TypeVar("B", bound=Body)

# JSON's own type, and what curl, urllib and others say when nobody told them; a form or a file is refused.
_MEDIA_TYPES = ("application/json", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream")
# Parsing this much takes less than handing it to a thread.
_INLINE_BYTES = 16 * 1024


class BodyReader:
    """Reads bodies. All that are under way share a budget of bytes, from their first byte until their request ends.

    Args:
        limits: of one request.
        budget: of bytes.
    """

    def __init__(self, limits: Limits, budget: Shares) -> None:
        self._limits = limits
        self.budget = budget
        # One: parsing holds the interpreter's lock, and with two threads the event loop would wait for both.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bodies")

    def close(self) -> None:
        """Lets the thread go; what it parses now ends on its own."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def read(self, request: web.Request, kind: type[B], *, tenant: str) -> AsyncIterator[B]:
        """The body of a request as its type; its bytes are held for as long as the `async with` lasts.

        Raises:
            UnsupportedMediaType: it is compressed, or of a type that is no JSON.
            BodyTooLarge: it has more bytes than the limit; they are not read.
            BodyTimeout: it does not come to its end in time.
            Overloaded: all bodies under way have too many bytes together.
            InvalidRequest: it is no JSON object, or a field is wrong; names it.
        """
        self._check_headers(request)
        with self.budget.hold(tenant) as held:
            try:
                async with asyncio.timeout(self._limits.body_timeout_s):
                    body = await self._receive(request, held)
            except TimeoutError:
                raise BodyTimeout(f"the body did not arrive within {self._limits.body_timeout_s:g} s") from None
            if len(body) <= _INLINE_BYTES:
                parsed = self._parse(body, kind)
            else:
                parsed = await asyncio.get_running_loop().run_in_executor(self._thread, self._parse, body, kind)
            del body
            yield parsed

    def _check_headers(self, request: web.Request) -> None:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType("Content-Encoding is set, the body must not be compressed")
        if request.content_type not in _MEDIA_TYPES:
            raise UnsupportedMediaType(f"Content-Type is {request.content_type[:128]}, it must be application/json")
        most = self._limits.max_body_bytes
        if request.content_length is not None and request.content_length > most:
            raise BodyTooLarge(f"the body has {request.content_length} bytes, the limit is {most}")

    async def _receive(self, request: web.Request, held: Holding) -> bytearray:
        body = bytearray()
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > self._limits.max_body_bytes:
                raise BodyTooLarge(f"the body has more than {self._limits.max_body_bytes} bytes, the limit")
            held.add(len(chunk))
            body += chunk
        return body

    def _parse(self, body: bytearray, kind: type[B]) -> B:
        return parse_body(kind, parse_json_object(body, self._limits), self._limits)
