"""One gateway's stream: many requests under way, answered in any order, none of which can end the stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial

from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, ServiceError, Unavailable, to_proto
from triserve.v1 import tokenizer_pb2 as pb

logger = logging.getLogger(__name__)

Answer = pb.EncodeResponse | pb.DecodeResponse
# A gateway that does not read its answers is not read either.
_MAX_UNSENT_ITEMS = 8 * 1024 * 1024
# Of answers that are there, so many go in one message, of so many items; one alone may have more.
_MAX_ANSWERS_PER_MESSAGE = 64
_MAX_ITEMS_PER_MESSAGE = 64 * 1024


class TokenizeStream:
    """The requests of one stream.

    Args:
        begin: does or queues a request's work; raises ServiceError for one it does not take.
        max_under_way: most requests under way at once.
    """

    def __init__(self, begin: Callable[[pb.TokenizeRequest], Future[Answer]], *, max_under_way: int) -> None:
        self._begin = begin
        self._max_under_way = max_under_way
        self._under_way: dict[int, Future[Answer]] = {}
        self._unsent: deque[pb.TokenizeResponse] = deque()
        self._unsent_items = 0
        self._leaving = False
        # Whether the gateway reads several answers of one message.
        self._takes_more = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    def leave(self) -> None:
        """Takes no more requests, and ends the stream as soon as those under way are answered."""
        self._leaving = True
        self._changed.set()

    async def serve(self, requests: AsyncIterable[pb.TokenizeRequest]) -> AsyncIterator[pb.TokenizeResponse]:
        """Answers requests until the gateway has no more, or `leave` was called.

        Raises:
            Unavailable: this process leaves.

        Effects: when it ends early, cancels what is still queued.
        """
        reader = asyncio.ensure_future(self._read(requests))
        reader.add_done_callback(lambda _: self._changed.set())
        try:
            while True:
                while self._unsent:
                    yield self._next_message()
                if not self._under_way and (self._leaving or reader.done()):
                    break
                self._changed.clear()
                await self._changed.wait()
            if not reader.done():
                raise Unavailable("the tokenizer is leaving")
            reader.result()
        finally:
            reader.cancel()
            under_way, self._under_way = self._under_way, {}
            for future in under_way.values():
                future.cancel()

    def _next_message(self) -> pb.TokenizeResponse:
        message = self._popped()
        num_items = _num_items(message)
        while self._takes_more and self._unsent and len(message.more) + 1 < _MAX_ANSWERS_PER_MESSAGE:
            num_items += _num_items(self._unsent[0])
            if num_items > _MAX_ITEMS_PER_MESSAGE:
                break
            message.more.append(self._popped())
        self._room.set()
        return message

    def _popped(self) -> pb.TokenizeResponse:
        response = self._unsent.popleft()
        self._unsent_items -= _num_items(response)
        return response

    async def _read(self, requests: AsyncIterable[pb.TokenizeRequest]) -> None:
        async for message in requests:
            self._takes_more |= message.takes_more
            for request in (message, *message.more):
                while len(self._unsent) >= self._max_under_way or self._unsent_items > _MAX_UNSENT_ITEMS:
                    self._room.clear()
                    await self._room.wait()
                if request is not message and request.more:
                    self._send_error(request.request, InvalidRequest("more is set in one of more", field="more"))
                elif request.WhichOneof("work") == "cancel":
                    self._cancel(request)
                else:
                    self._take(request)

    def _take(self, request: pb.TokenizeRequest) -> None:
        number = request.request
        try:
            self._check_place(number)
            future = self._begin(request)
        except Exception as error:  # noqa: BLE001 - any failure is this request's alone
            self._send_error(number, error)
            return
        if future.done():
            self._send(number, future)
            return
        self._under_way[number] = future
        asyncio.wrap_future(future).add_done_callback(partial(self._finish, number, future))

    def _check_place(self, number: int) -> None:
        if self._leaving:
            raise Unavailable("the tokenizer is leaving")
        if number in self._under_way:
            raise InvalidRequest(f"request {number} is under way already", field="request")
        if len(self._under_way) >= self._max_under_way:
            raise Overloaded(f"the stream has {len(self._under_way)} requests under way, the limit is {self._max_under_way}")

    def _cancel(self, request: pb.TokenizeRequest) -> None:
        if not request.cancel:
            self._send_error(request.request, InvalidRequest("cancel is false, it can only be true", field="cancel"))
            return
        future = self._under_way.get(request.request)
        if future is not None and future.cancel():
            del self._under_way[request.request]
            self._changed.set()

    def _finish(self, number: int, future: Future[Answer], done: asyncio.Future[Answer]) -> None:
        if not done.cancelled():
            done.exception()
        # The number may belong to another request by now, or the stream be over.
        if self._under_way.get(number) is future:
            del self._under_way[number]
            self._send(number, future)

    def _send(self, number: int, future: Future[Answer]) -> None:
        error = future.exception()
        if error is not None:
            self._send_error(number, error)
            return
        answer = future.result()
        if isinstance(answer, pb.EncodeResponse):
            self._put(pb.TokenizeResponse(request=number, encoded=answer))
        else:
            self._put(pb.TokenizeResponse(request=number, decoded=answer))

    def _send_error(self, number: int, error: BaseException) -> None:
        if not isinstance(error, ServiceError):
            logger.error("a request failed", exc_info=error)
            error = Internal("internal error")
        self._put(pb.TokenizeResponse(request=number, error=to_proto(error)))

    def _put(self, response: pb.TokenizeResponse) -> None:
        self._unsent.append(response)
        self._unsent_items += _num_items(response)
        self._changed.set()


def _num_items(response: pb.TokenizeResponse) -> int:
    """Ids, characters and token strings of an answer: its size, without the price of measuring it in bytes."""
    encoded, decoded = response.encoded, response.decoded
    sampled = len(encoded.sampling.dry_breaker_ids) + sum(len(word.token_ids) for word in encoded.sampling.bad_words)
    return len(encoded.token_ids) + sampled + len(decoded.text) + len(decoded.tokens)
