"""The tokenize stage as gRPC sees it: messages in, domain calls, messages out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import grpc

from tokenizer_svc.chat_encoder import Chat, ChatEncoder
from tokenizer_svc.chat_template import Message, TemplateValue
from tokenizer_svc.free_memory import release_free_memory
from tokenizer_svc.input_limits import InputLimits
from tokenizer_svc.lanes import Lanes
from tokenizer_svc.metrics import Metrics
from tokenizer_svc.sampling_strings import SamplingStringEncoder, SamplingStrings
from tokenizer_svc.tokenize_stream import Answer, TokenizeStream
from tokenizer_svc.tokenizer import Tokenizer
from tokenizer_svc.tools import Tool, ToolCall
from triserve.rpc.errors import InvalidRequest, ServiceError
from triserve.rpc.traces.context import read_traceparent
from triserve.rpc.traces.spans import OpenSpan, Tracer, error_type
from triserve.v1 import common_pb2, tokenizer_pb2_grpc
from triserve.v1 import tokenizer_pb2 as pb

# Texts above this size leave more free memory behind than is worth keeping: a hundred times their own.
_TRIMMED_BYTES = 256 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class _Most(NamedTuple):
    """How many ids there may be, and how many of the last are kept; None = any, and all."""

    max_tokens: int | None
    keep_last: int | None


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Serves one tokenizer.

    Args:
        tokenizer: the model's.
        chats: encodes chats; None = the model has no template.
        tool_chats: encodes those with tools; None = as all others.
        limits: what is accepted.
        lanes: where the work is done.
        info: answer of GetTokenizerInfo.
        max_requests_per_stream: most requests under way on one stream.
        metrics: where to count.
        tracer: records spans; None = nothing is traced.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        chats: ChatEncoder | None,
        *,
        limits: InputLimits,
        lanes: Lanes,
        info: pb.GetTokenizerInfoResponse,
        max_requests_per_stream: int,
        metrics: Metrics,
        tracer: Tracer | None = None,
        tool_chats: ChatEncoder | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._tokenizer = tokenizer
        self._chats = chats
        self._tool_chats = chats if tool_chats is None else tool_chats
        self._sampling = SamplingStringEncoder(tokenizer)
        self._limits = limits
        self._lanes = lanes
        self._info = info
        self._max_requests_per_stream = max_requests_per_stream
        self._streams: set[TokenizeStream] = set()
        self._leaving = False

    @property
    def has_streams(self) -> bool:
        """Whether anybody is connected."""
        return bool(self._streams)

    def leave(self) -> None:
        """Ends streams as soon as what is under way on them is answered."""
        self._leaving = True
        for stream in self._streams:
            stream.leave()

    async def GetTokenizerInfo(self, request: pb.GetTokenizerInfoRequest, context: Context) -> pb.GetTokenizerInfoResponse:
        """What this tokenizer is."""
        return self._info

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """Encodes one text or chat."""
        response: pb.EncodeResponse = await _outcome(self._begin_encode(request))
        return response

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:
        """Decodes one list of token ids."""
        response: pb.DecodeResponse = await _outcome(self._begin_decode(request))
        return response

    async def Tokenize(self, requests: AsyncIterable[pb.TokenizeRequest], context: Context) -> AsyncIterator[pb.TokenizeResponse]:
        """Encodes and decodes for a gateway."""
        stream = TokenizeStream(self._counted, max_under_way=self._max_requests_per_stream)
        self._streams.add(stream)
        try:
            if self._leaving:
                stream.leave()
            async for response in stream.serve(requests):
                yield response
        finally:
            self._streams.discard(stream)

    def _counted(self, request: pb.TokenizeRequest) -> Future[Answer]:
        try:
            future = self._begin(request)
        except ServiceError as error:
            self._metrics.requests.labels(error.reason.lower()).inc()
            raise
        future.add_done_callback(self._count)
        return future

    def _count(self, future: Future[Answer]) -> None:
        if future.cancelled():
            self._metrics.requests.labels("cancelled").inc()
            return
        error = future.exception()
        if error is not None:
            self._metrics.requests.labels(error.reason.lower() if isinstance(error, ServiceError) else "internal").inc()
            return
        self._metrics.requests.labels("ok").inc()
        answer = future.result()
        if isinstance(answer, pb.EncodeResponse):
            self._metrics.tokens.inc(len(answer.token_ids))
            self._metrics.encode_seconds.observe(answer.encode_us / 1e6)

    def _begin(self, request: pb.TokenizeRequest) -> Future[Answer]:
        work = request.WhichOneof("work")
        if work == "encode":
            return self._begin_encode(request.encode)
        if work == "decode":
            return self._begin_decode(request.decode)
        raise InvalidRequest("work is not set, it must be encode, decode or cancel", field="work")

    def _begin_encode(self, request: pb.EncodeRequest) -> Future[Answer]:
        caller = read_traceparent(request.traceparent)
        if caller is None or self._tracer is None:
            return self._begin_encoding(request)
        span = self._tracer.begin("encode", caller, kind="server")
        try:
            future = self._begin_encoding(request)
        except ServiceError as error:
            span.error = error_type(error)
            span.end()
            raise
        future.add_done_callback(partial(_end_encode, span))
        return future

    def _begin_encoding(self, request: pb.EncodeRequest) -> Future[Answer]:
        encode, size = self._encoding_of(request)
        if not request.HasField("sampling"):
            return self._submit(encode, size)
        strings = SamplingStrings.check(request.sampling.bad_words, request.sampling.dry_sequence_breakers)
        breaker_ids = self._sampling.kept_breaker_ids(strings)

        def encode_both() -> pb.EncodeResponse:
            response = encode()
            ids = self._sampling.encode(strings, breaker_ids)
            response.sampling.CopyFrom(
                pb.SamplingIds(
                    bad_words=[common_pb2.TokenSequence(token_ids=word) for word in ids.bad_words], dry_breaker_ids=ids.breaker_ids
                )
            )
            return response

        # The search through a vocabulary is nothing for the event loop, whatever the size of its input.
        return self._submit(encode_both, size + strings.num_bytes, at_once=breaker_ids is not None)

    def _encoding_of(self, request: pb.EncodeRequest) -> tuple[Callable[[], pb.EncodeResponse], int]:
        """What encodes the request's input, and the input's bytes."""
        most = _Most(
            request.max_tokens if request.HasField("max_tokens") else None,
            request.keep_last_tokens if request.HasField("keep_last_tokens") else None,
        )
        if most.keep_last == 0:
            raise InvalidRequest("keep_last_tokens is 0, the least is 1", field="keep_last_tokens")
        kind = request.WhichOneof("input")
        if kind == "text":
            text = request.text
            size = self._limits.check_text(text.text)
            add_special_tokens = text.add_special_tokens if text.HasField("add_special_tokens") else True
            return partial(self._encode_text, text.text, add_special_tokens, most), size
        if kind == "chat":
            chat = chat_of(request.chat)
            size = self._limits.check_chat(chat)
            chats = self._tool_chats if chat.tools else self._chats
            if chats is None:
                raise InvalidRequest("messages cannot be encoded: the model has no chat template", field="messages")
            return partial(self._encode_chat, chats, chat, most), size
        if request.HasField("sampling"):
            return pb.EncodeResponse, 0
        raise InvalidRequest("input is not set, it must be text or chat", field="input")

    def _begin_decode(self, request: pb.DecodeRequest) -> Future[Answer]:
        size = self._limits.check_token_ids(request.token_ids)
        return self._lanes.submit(partial(self._decode, request), size)

    def _submit(self, encode: Callable[[], pb.EncodeResponse], num_bytes: int, *, at_once: bool = True) -> Future[Answer]:
        arrived = time.perf_counter()

        def timed() -> Answer:
            try:
                response = encode()
            finally:
                if num_bytes > _TRIMMED_BYTES:
                    release_free_memory()
            response.encode_us = round((time.perf_counter() - arrived) * 1e6)
            return response

        return self._lanes.submit(timed, num_bytes, at_once=at_once)

    def _encode_text(self, text: str, add_special_tokens: bool, most: _Most) -> pb.EncodeResponse:
        token_ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens, field="prompt", **most._asdict())
        return pb.EncodeResponse(token_ids=token_ids)

    def _encode_chat(self, chats: ChatEncoder, chat: Chat, most: _Most) -> pb.EncodeResponse:
        encoded = chats.encode(chat, **most._asdict())
        return pb.EncodeResponse(token_ids=encoded.token_ids, system_tokens=encoded.system_tokens, prompt_end=encoded.end)

    def _decode(self, request: pb.DecodeRequest) -> Answer:
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        decoded = self._tokenizer.decode(list(request.token_ids), skip_special_tokens=skip, return_tokens=request.return_tokens)
        return pb.DecodeResponse(text=decoded.text, tokens=decoded.tokens)


def chat_of(chat: pb.ChatInput) -> Chat:
    """The domain's chat.

    Raises:
        InvalidRequest: an argument is named twice or has no value, or how the chat ends is contradictory.
    """
    if chat.continue_final_message and chat.add_generation_prompt:
        raise InvalidRequest("continue_final_message and add_generation_prompt are both true", field="continue_final_message")

    arguments: dict[str, TemplateValue] = {}
    for argument in chat.template_arguments:
        kind = argument.WhichOneof("value")
        if kind is None:
            raise InvalidRequest(f"template_arguments has {argument.name[:64]!r} without a value", field="template_arguments")
        if argument.name in arguments:
            raise InvalidRequest(f"template_arguments has {argument.name[:64]!r} twice", field="template_arguments")
        arguments[argument.name] = getattr(argument, kind)
    return Chat(
        tuple(map(_message_of, chat.messages)),
        arguments,
        chat.add_generation_prompt if chat.HasField("add_generation_prompt") else not chat.continue_final_message,
        continue_final_message=chat.continue_final_message,
        tools=tuple(map(_tool_of, chat.tools)),
        add_special_tokens=chat.add_special_tokens,
    )


def _message_of(turn: pb.ChatMessage) -> Message:
    return Message(
        turn.role,
        turn.content,
        turn.name if turn.HasField("name") else None,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls),
        tool_call_id=turn.tool_call_id if turn.HasField("tool_call_id") else None,
        reasoning=turn.reasoning if turn.HasField("reasoning") else None,
    )


def _tool_of(tool: pb.FunctionTool) -> Tool:
    description = tool.description if tool.HasField("description") else None
    return Tool(tool.name, description, tool.parameters_json if tool.HasField("parameters_json") else None)


def _end_encode(span: OpenSpan, future: Future[Answer]) -> None:
    if future.cancelled():
        span.error = "cancelled"
    elif (error := future.exception()) is not None:
        span.error = error_type(error)
    elif isinstance(answer := future.result(), pb.EncodeResponse):
        span.attributes["gen_ai.usage.input_tokens"] = len(answer.token_ids)
    span.end()


async def _outcome(future: Future[Any]) -> Any:
    """The work's result; if the call ends first, the work leaves the queue."""
    return future.result() if future.done() else await asyncio.wrap_future(future)
