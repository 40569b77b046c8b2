"""The stream to one tokenizer: texts and chats out, token ids in, in any order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import grpc

from gateway.clients.peer import Peer
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest, Unavailable, from_proto
from triserve.rpc.session import MalformedMessage, read_message
from triserve.rpc.tls.ends import ClientTls
from triserve.v1 import tokenizer_pb2, tokenizer_pb2_grpc

# Of requests that are to be sent, so many go in one message, of so many bytes; one alone may have more.
_MAX_REQUESTS_PER_MESSAGE = 64
_MAX_MESSAGE_BYTES = 256 * 1024
# Far above any model's.
_MAX_EOS_TOKEN_IDS = 4096
_MAX_FORMAT_CHARS = 64
_MAX_SPECIAL_TOKENS = 1 << 16
_MAX_TEMPLATE_CHARS = 1 << 20
_Default: TypeAlias = Literal["default_temperature", "default_top_p", "default_min_p", "default_typical_p", "default_repetition_penalty"]
_DEFAULTS: Mapping[_Default, limits.Range] = {
    "default_temperature": limits.TEMPERATURE,
    "default_top_p": limits.TOP_P,
    "default_min_p": limits.MIN_P,
    "default_typical_p": limits.TYPICAL_P,
    "default_repetition_penalty": limits.REPETITION_PENALTY,
}


class _Waiting(NamedTuple):
    """A request and who waits for its answer."""

    request: tokenizer_pb2.TokenizeRequest
    answer: asyncio.Future[tokenizer_pb2.TokenizeResponse]


class TokenizerPeer(Peer):
    """One tokenizer process.

    Args:
        target: "host:port".
        on_change: see `Peer`.
        tls: see `PeerSession`.

    Attributes:
        asked_at: when it was last asked for something, monotonic seconds.
    """

    stage = "tokenizer"
    service = "triserve.v1.TokenizerService"

    def __init__(self, target: str, *, on_change: Callable[[], None], tls: ClientTls | None = None) -> None:
        super().__init__(target, on_change=on_change, tls=tls)
        self.info: tokenizer_pb2.GetTokenizerInfoResponse | None = None
        self._stream: grpc.aio.StreamStreamCall[Any, Any] | None = None
        self._waiting: dict[int, _Waiting] = {}
        self._unsent: dict[int, tokenizer_pb2.TokenizeRequest] = {}
        self._wake = asyncio.Event()
        self._last_number = 0
        self.asked_at = 0.0

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
        response = await self._ask(tokenizer_pb2.TokenizeRequest(request=self._last_number, encode=request, takes_more=True))
        return response.encoded

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Decodes token ids. Cancelling the call cancels the request.

        Raises:
            Unavailable: there is no session, or it was lost.
            ServiceError: whatever the tokenizer says.
        """
        self._last_number += 1
        response = await self._ask(tokenizer_pb2.TokenizeRequest(request=self._last_number, decode=request, takes_more=True))
        return response.decoded

    async def _ask(self, message: tokenizer_pb2.TokenizeRequest) -> tokenizer_pb2.TokenizeResponse:
        if not self._open:
            raise Unavailable("there is no session with the tokenizer")
        number, self.asked_at = message.request, time.monotonic()
        answer: asyncio.Future[tokenizer_pb2.TokenizeResponse] = asyncio.get_running_loop().create_future()
        self._waiting[number] = _Waiting(message, answer)
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

    async def _greet(self, channel: grpc.aio.Channel) -> None:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        info = await stub.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest())
        if not isinstance(info, tokenizer_pb2.GetTokenizerInfoResponse):
            raise MalformedMessage("its information is none")
        _check_info(info)
        self.info, self.fingerprint = info, info.fingerprint
        self._stream = stub.Tokenize()

    def _parts(self) -> Sequence[Coroutine[Any, Any, None]]:
        assert self._stream is not None, "the tokenizer has said what it is"
        return (self._read(self._stream), self._write(self._stream))

    async def _read(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        while True:
            message = await read_message(stream, tokenizer_pb2.TokenizeResponse)
            self._receive(message)
            for response in message.more:
                if response.more:
                    raise MalformedMessage("more is set in one of more")
                self._receive(response)

    def _receive(self, response: tokenizer_pb2.TokenizeResponse) -> None:
        if not 0 < response.request <= self._last_number:
            raise MalformedMessage("request is one that was never made")
        waiting = self._waiting.get(response.request)
        # One that was cancelled may be answered all the same.
        if waiting is not None and not waiting.answer.done():
            assert self.info is not None, "the tokenizer has said what it is"
            _check_answer(waiting.request, response, vocab_size=self.info.vocab_size)
            del self._waiting[response.request]
            waiting.answer.set_result(response)

    async def _write(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        while True:
            await self._wake.wait()
            # Whoever else is to ask in this turn of the event loop does: a message costs more than what is in it.
            await asyncio.sleep(0)
            self._wake.clear()
            while self._unsent:
                await stream.write(self._next_message())

    def _next_message(self) -> tokenizer_pb2.TokenizeRequest:
        first, *others = self._next_requests()
        if not others:
            return first
        # A new message: the first is its caller's, who may ask another tokenizer with it.
        message = tokenizer_pb2.TokenizeRequest()
        message.CopyFrom(first)
        message.more.extend(others)
        return message

    def _next_requests(self) -> list[tokenizer_pb2.TokenizeRequest]:
        assert self.info is not None, "the tokenizer has said what it is"
        most = _MAX_REQUESTS_PER_MESSAGE if self.info.takes_more else 1
        requests: list[tokenizer_pb2.TokenizeRequest] = []
        num_bytes = 0
        for request in self._unsent.values():
            num_bytes += request.ByteSize()
            if requests and (num_bytes > _MAX_MESSAGE_BYTES or len(requests) == most):
                break
            requests.append(request)
        for request in requests:
            del self._unsent[request.request]
        return requests

    def _lost(self, error: Unavailable) -> None:
        self._unsent.clear()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if not one.answer.done():
                one.answer.set_exception(error)


def _check_info(info: tokenizer_pb2.GetTokenizerInfoResponse) -> None:
    """Refuses a tokenizer whose word on the model would spoil every request of the gateway.

    Raises:
        MalformedMessage: naming the field.
    """
    if info.vocab_size < 1:
        raise MalformedMessage("vocab_size is 0, the least is 1")
    if len(info.eos_token_ids) > _MAX_EOS_TOKEN_IDS:
        raise MalformedMessage(f"eos_token_ids has {len(info.eos_token_ids)} ids, the limit is {_MAX_EOS_TOKEN_IDS}")
    for field, text in (("tool_call_format", info.tool_call_format), ("reasoning_format", info.reasoning_format)):
        if len(text) > _MAX_FORMAT_CHARS:
            raise MalformedMessage(f"{field} has {len(text)} characters, the limit is {_MAX_FORMAT_CHARS}")
    num_special, num_chars = len(info.special_tokens) + len(info.additional_special_tokens), len(info.chat_template)
    if num_special > _MAX_SPECIAL_TOKENS:
        raise MalformedMessage(f"special_tokens has {num_special} tokens, the limit is {_MAX_SPECIAL_TOKENS}")
    if num_chars > _MAX_TEMPLATE_CHARS:
        raise MalformedMessage(f"chat_template has {num_chars} characters, the limit is {_MAX_TEMPLATE_CHARS}")
    try:
        for name, allowed in _DEFAULTS.items():
            if info.HasField(name):
                allowed.check(name, getattr(info, name))
    except InvalidRequest as error:
        raise MalformedMessage(error.message) from error


def _check_answer(request: tokenizer_pb2.TokenizeRequest, response: tokenizer_pb2.TokenizeResponse, *, vocab_size: int) -> None:
    """Holds an answer against what was asked.

    Raises:
        MalformedMessage: it cannot be the answer to that.
    """
    kind = response.WhichOneof("result")
    if kind == "error":
        return
    if kind != {"encode": "encoded", "decode": "decoded"}[request.WhichOneof("work") or ""]:
        raise MalformedMessage("result is not of the kind that was asked for")
    if kind == "encoded":
        encode, encoded = request.encode, response.encoded
        num_ids = len(encoded.token_ids)
        if num_ids and max(encoded.token_ids) >= vocab_size:
            raise MalformedMessage(f"token_ids has id {max(encoded.token_ids)}, the limit is {vocab_size - 1}")
        if encode.HasField("max_tokens") and num_ids > encode.max_tokens:
            raise MalformedMessage(f"token_ids has {num_ids} ids, the limit was {encode.max_tokens}")
        if encode.HasField("keep_last_tokens") and num_ids > encode.keep_last_tokens:
            raise MalformedMessage(f"token_ids has {num_ids} ids, the last {encode.keep_last_tokens} were asked for")
        if encoded.system_tokens > num_ids:
            raise MalformedMessage(f"system_tokens is {encoded.system_tokens}, there are {num_ids} ids")
        if len(encoded.prompt_end) > limits.MAX_PROMPT_END_CHARS:
            raise MalformedMessage(f"prompt_end has {len(encoded.prompt_end)} characters, the limit is {limits.MAX_PROMPT_END_CHARS}")
        _check_sampling(encode.sampling, encoded.sampling, vocab_size=vocab_size)
    else:
        wanted = len(request.decode.token_ids) if request.decode.return_tokens else 0
        if len(response.decoded.tokens) != wanted:
            raise MalformedMessage(f"tokens has {len(response.decoded.tokens)} strings, {wanted} were asked for")


def _check_sampling(strings: tokenizer_pb2.SamplingStrings, ids: tokenizer_pb2.SamplingIds, *, vocab_size: int) -> None:
    breakers, words = ids.dry_breaker_ids, ids.bad_words
    most = limits.MAX_LISTED_TOKEN_IDS if strings.dry_sequence_breakers else 0
    if len(breakers) > most:
        raise MalformedMessage(f"dry_breaker_ids has {len(breakers)} ids, the limit is {most}")
    if not bool(strings.bad_words) <= len(words) <= 2 * len(strings.bad_words):
        raise MalformedMessage(f"bad_words has {len(words)} sequences, there are {len(strings.bad_words)} words")
    for word in words:
        if not 1 <= len(word.token_ids) <= limits.MAX_BAD_WORD_TOKENS:
            raise MalformedMessage(f"bad_words has a sequence of {len(word.token_ids)} ids, the limit is {limits.MAX_BAD_WORD_TOKENS}")
    highest = max((max(one) for one in (breakers, *(word.token_ids for word in words)) if one), default=0)
    if highest >= vocab_size:
        raise MalformedMessage(f"sampling has id {highest}, the limit is {vocab_size - 1}")
