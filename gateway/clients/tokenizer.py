"""The stream to one tokenizer: texts and chats out, token ids in, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from gateway.clients.peer import HELLO_TIMEOUT_S, Peer
from triserve.rpc.errors import ServiceError, Unavailable, from_proto
from triserve.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc


class TokenizerPeer(Peer):
    """One tokenizer process.

    Args:
        target: "host:port".
        agree: see `Peer`.
        on_change: see `Peer`.
    """

    stage = "tokenizer"
    service = "triserve.v1.TokenizerService"

    def __init__(self, target: str, *, agree: Callable[[Peer, common_pb2.Fingerprint], None], on_change: Callable[[], None]) -> None:
        super().__init__(target, agree=agree, on_change=on_change)
        self.info: tokenizer_pb2.GetTokenizerInfoResponse | None = None
        self._stream: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._waiting: dict[int, asyncio.Future[tokenizer_pb2.TokenizeResponse]] = {}
        self._unsent: dict[int, tokenizer_pb2.TokenizeRequest] = {}
        self._wake = asyncio.Event()
        self._last_number = 0

    @property
    def in_flight(self) -> int:
        """Requests that wait for an answer."""
        return len(self._waiting)

    async def encode(self, request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
        """Encodes a text or chat. Cancelling the call cancels the request.

        Raises:
            Unavailable: there is no session, or it was lost.
            ServiceError: whatever the tokenizer says.
        """
        self._last_number += 1
        response = await self._ask(tokenizer_pb2.TokenizeRequest(request=self._last_number, encode=request))
        return response.encoded

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Decodes token ids. Cancelling the call cancels the request.

        Raises:
            Unavailable: there is no session, or it was lost.
            ServiceError: whatever the tokenizer says.
        """
        self._last_number += 1
        response = await self._ask(tokenizer_pb2.TokenizeRequest(request=self._last_number, decode=request))
        return response.decoded

    async def _ask(self, message: tokenizer_pb2.TokenizeRequest) -> tokenizer_pb2.TokenizeResponse:
        if not self._open:
            raise Unavailable("there is no session with the tokenizer")
        number = message.request
        answer: asyncio.Future[tokenizer_pb2.TokenizeResponse] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._send(message)
        try:
            response = await answer
        finally:
            if self._waiting.pop(number, None) is not None and self._unsent.pop(number, None) is None and self._open:
                self._send(tokenizer_pb2.TokenizeRequest(request=number, cancel=True))
        if response.WhichOneof("result") == "error":
            raise from_proto(response.error)
        return response

    def _send(self, message: tokenizer_pb2.TokenizeRequest) -> None:
        self._unsent[message.request] = message
        self._wake.set()

    async def _talk(self, channel: grpc.aio.Channel) -> None:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.info = await stub.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest(), timeout=HELLO_TIMEOUT_S)
        self._stream = stub.Tokenize()
        self._opened(self.info.fingerprint)
        async for response in self._stream:
            answer = self._waiting.pop(response.request, None)
            if answer is not None and not answer.done():
                answer.set_result(response)
        raise Unavailable("the tokenizer ended the stream")

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent:
                assert self._stream is not None, "requests are taken only while the stream is open"
                await self._stream.write(self._unsent.pop(next(iter(self._unsent))))

    def _lost(self, error: ServiceError) -> None:
        self._unsent.clear()
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(error)
