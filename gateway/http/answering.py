"""Answers a call over HTTP: as one JSON body, or as a stream of events that always ends in a finish reason or an error."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from aiohttp import web

from gateway.context import WAKE
from gateway.flow.admission import Ticket
from gateway.flow.call import Call
from gateway.flow.generations.generation import CacheReport, Generation, Piece
from gateway.flow.generations.system2_attention import rewritten_turn
from gateway.flow.pipeline import Pipeline
from gateway.http.error_map import as_service_error
from gateway.http.openai.answer import WholeChoice, extra_body, gather, usage_body
from gateway.http.openai.logprobs import prompt_logprobs
from gateway.http.sse import KEEP_ALIVE, EventRenderer
from triserve.rpc.errors import Cancelled

CACHE_HEADER = "X-Triserve-Cache"
_SIMILARITY_HEADER = "X-Triserve-Cache-Similarity"
_STREAM_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# A write of less than this to a transport that holds nothing never waits.
_SMALL_WRITE_BYTES = 16 * 1024
# Tokens of prompts that are written in less than handing them to a thread takes.
_INLINE_TOKENS = 64
# A client for whom more than this waits is behind: what comes for it is merged.
_BEHIND_BYTES = 4 * 1024


class AnswerRenderer(Protocol):
    """How an answer looks: what a door has of its own."""

    def whole(self, call: Call, generation: Generation, choices: list[WholeChoice]) -> dict[str, Any]:
        """The body of a whole answer."""

    def events(self, system_fingerprint: str) -> EventRenderer:
        """What makes the events of a stream."""


class OpenAiRenderer(NamedTuple):
    """How an answer to a chat or a completion looks. Implements `AnswerRenderer`."""

    # OpenAI's "object" of the whole answer.
    kind: str
    model: str
    # Makes a choice's body from its index and what was gathered.
    choice: Callable[[int, WholeChoice], dict[str, Any]]
    # Makes what makes the events of a stream, from the system fingerprint.
    events: Callable[[str], EventRenderer]
    timeline: bool
    # Whether all choices are of one prompt, and the whole answer tells of it; a completion tells in its choices.
    prompt_of_all: bool = False
    # Whether it has the prompt's ids.
    prompt_token_ids: bool = False
    # How many of the likeliest tokens it has with each token of the prompt; None = it has nothing of them.
    prompt_logprobs: int | None = None

    def whole(self, call: Call, generation: Generation, choices: list[WholeChoice]) -> dict[str, Any]:
        """See `AnswerRenderer`."""
        body = {
            "id": call.request_id,
            "object": self.kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": generation.system_fingerprint,
            "choices": [self.choice(index, choice) for index, choice in enumerate(choices)],
            "usage": usage_body(generation.usage()),
        }
        if self.prompt_of_all:
            # Clients written for vLLM read these whether they asked for them or not.
            body["prompt_token_ids"] = list(generation.prompt_token_ids(0)) if self.prompt_token_ids else None
            told = self.prompt_logprobs
            body["prompt_logprobs"] = None if told is None else prompt_logprobs(choices[0].prompt_logprobs, told)
        if extra := extra_body(generation.timeline() if self.timeline else None, rewritten_turn(generation)):
            body["triserve"] = extra
        return body


async def respond_whole(pipeline: Pipeline, call: Call, ticket: Ticket, renderer: AnswerRenderer) -> web.Response:
    """The whole answer in one body.

    Raises:
        ServiceError: the call is refused or fails.
    """
    async with pipeline.open(call, ticket) as generation:
        choices = await gather(generation, len(call.prompts) * call.n)
    headers = cache_headers(generation.cache, call)
    if sum(len(choice.prompt_logprobs) for choice in choices) <= _INLINE_TOKENS:
        return json_response(renderer.whole(call, generation, choices), headers=headers)
    # What is told of long prompts is much to write, and others go on meanwhile.
    return await asyncio.to_thread(lambda: json_response(renderer.whole(call, generation, choices), headers=headers))


def cache_headers(report: CacheReport, call: Call) -> dict[str, str]:
    """What the prompt cache did, for the client."""
    headers: dict[str, str] = {CACHE_HEADER: report.status}
    if report.age_s is not None:
        headers["Age"] = str(report.age_s)
    if report.similarity is not None and call.sees_similarity:
        headers[_SIMILARITY_HEADER] = f"{report.similarity:.4f}"
    return headers


def json_response(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON body."""
    return web.Response(body=json.dumps(body).encode(), status=status, content_type="application/json", headers=headers)


async def respond_stream(
    request: web.Request, pipeline: Pipeline, call: Call, ticket: Ticket, renderer: AnswerRenderer, *, stall_timeout_s: float
) -> web.StreamResponse:
    """The answer as events. The status line is sent with the first of them, or when there was none for a while.

    Raises:
        ServiceError: the call failed before anything was sent.
    """
    stream = EventStream(request, stall_timeout_s=stall_timeout_s)
    events: EventRenderer | None = None
    try:
        async with pipeline.open(call, ticket) as generation:
            stream.headers.update(cache_headers(generation.cache, call))
            request[WAKE] = generation.wake
            events = renderer.events(generation.system_fingerprint)
            generation.write_to(EventWriter(stream, events, generation))
            while not generation.finished:
                pieces = await generation.next()
                if data := events.pieces(pieces, generation) if pieces else KEEP_ALIVE:
                    await stream.send(data)
            await stream.send(events.last(generation.usage(), generation.timeline()))
    except Exception as error:
        if not stream.begun or events is None:
            raise
        failure = as_service_error(error, request_id=call.request_id)
        with contextlib.suppress(Cancelled):
            await stream.send(events.failed(failure))
    await stream.end()
    return stream.response


class EventStream:
    """A response that is written event by event.

    Args:
        request: what it answers.
        stall_timeout_s: how long a client may leave what is sent unread.
    """

    def __init__(self, request: web.Request, *, stall_timeout_s: float) -> None:
        self.headers: dict[str, str] = {}
        self.begun = False
        # Whether the client is gone or was cut.
        self.broken = False
        self.response = web.StreamResponse(headers=_STREAM_HEADERS)
        self._request = request
        self._stall_timeout_s = stall_timeout_s
        # Once the head and the first events are on their way.
        self._transport: asyncio.WriteTransport | None = None
        self._is_chunked = False

    @property
    def is_free(self) -> bool:
        """Whether events may be written without waiting: some were sent, the client is there, and it reads."""
        transport = self._transport
        return (
            transport is not None and not self.broken and transport.get_write_buffer_size() <= _BEHIND_BYTES and not transport.is_closing()
        )

    def write(self, data: bytes) -> None:
        """Writes events, past aiohttp, which would make a task wait for each. Only while it is free."""
        assert self._transport is not None, "the response has begun"
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    async def send(self, data: bytes) -> None:
        """Sends events; waits while the client does not read.

        Raises:
            Cancelled: the client is gone, or has read nothing for too long and was cut.
        """
        transport = self._request.transport
        if self.broken or transport is None:
            raise self._lost("the client left")
        try:
            if not self.begun:
                self.begun = True
                self.response.headers.update(self.headers)
                await self.response.prepare(self._request)
            if len(data) < _SMALL_WRITE_BYTES and not transport.get_write_buffer_size():
                await self.response.write(data)
            else:
                async with asyncio.timeout(self._stall_timeout_s):
                    await self.response.write(data)
            if self._transport is None:
                self._is_chunked = self.response.headers.get("Transfer-Encoding") == "chunked"
                self._transport = transport
        except TimeoutError:
            transport.abort()
            raise self._lost(f"the client read nothing for {self._stall_timeout_s:g} s") from None
        except ConnectionError:
            raise self._lost("the client left") from None

    async def end(self) -> None:
        """Ends the response, if there is anybody to tell."""
        if not self.broken:
            with contextlib.suppress(ConnectionError):
                await self.response.write_eof()

    def _lost(self, why: str) -> Cancelled:
        self.broken = True
        return Cancelled(why)


class EventWriter:
    """Writes pieces as events while their client keeps up. Implements `Writer`.

    Args:
        stream: where to.
        events: makes them.
        generation: whose pieces they are.
    """

    def __init__(self, stream: EventStream, events: EventRenderer, generation: Generation) -> None:
        self._stream = stream
        self._events = events
        self._generation = generation

    @property
    def is_free(self) -> bool:
        """See `EventStream.is_free`."""
        return self._stream.is_free

    def write(self, piece: Piece) -> None:
        """Writes its events, if there is anything a client would see."""
        if data := self._events.pieces([piece], self._generation):
            self._stream.write(data)
