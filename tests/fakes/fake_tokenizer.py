"""A tokenizer over real gRPC whose ids are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from triserve.rpc.errors import PromptTooLong, ServiceError, to_proto
from triserve.rpc.server import HANDSHAKE_TIMEOUT_S, ServiceServer
from triserve.rpc.tls.ends import ServerTls
from triserve.v1 import common_pb2, tokenizer_pb2, tokenizer_pb2_grpc

EOS = 256
BOS = 257
VOCAB_SIZE = 258
FINGERPRINT = common_pb2.Fingerprint(tokenizer_sha256="ab" * 32, weights_revision="cd" * 32)


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Ids 0 to 255 are bytes. Implements the stage's interface; a test may hold its answers back.

    Args:
        listen: "host:port".
        tls: as of `ServiceServer`.
        handshake_timeout_s: as of `ServiceServer`.
        info: fields of the info that differ from a plain model's.
    """

    def __init__(
        self,
        listen: str = "127.0.0.1:0",
        *,
        tls: ServerTls | None = None,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
        **info: Any,
    ) -> None:
        known = {
            "fingerprint": FINGERPRINT,
            "vocab_size": VOCAB_SIZE,
            "eos_token_ids": [EOS],
            "has_chat_template": True,
            "max_input_bytes": 1 << 22,
            "takes_more": True,
        }
        self.info = tokenizer_pb2.GetTokenizerInfoResponse(**{**known, **info})
        # Answers wait while it is cleared.
        self.flowing = asyncio.Event()
        self.flowing.set()
        # Everything asked, and the numbers of what was cancelled.
        self.asked: list[tokenizer_pb2.TokenizeRequest] = []
        self.cancelled: list[int] = []
        # Of every chat, as if the template had written it.
        self.prompt_end = ""
        self.host = listen.rpartition(":")[0]
        self.server = ServiceServer(
            ["triserve.v1.TokenizerService"], self._register, listen, tls=tls, handshake_timeout_s=handshake_timeout_s
        )

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"{self.host}:{self.server.port}"

    async def start(self) -> None:
        """Listens, ready."""
        await self.server.start()
        await self.server.health.set_ready(True)

    async def kill(self) -> None:
        """Ends every stream at once."""
        await self.server.stop(0)

    def _register(self, server: grpc.aio.Server) -> None:
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(self, server)

    async def GetTokenizerInfo(self, request: Any, context: Any) -> tokenizer_pb2.GetTokenizerInfoResponse:
        """What it says it is."""
        return self.info

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, context: Any) -> tokenizer_pb2.EncodeResponse:
        """Encodes one input."""
        return _encode(request)

    async def Decode(self, request: tokenizer_pb2.DecodeRequest, context: Any) -> tokenizer_pb2.DecodeResponse:
        """Decodes some ids."""
        return _decode(request)

    async def Tokenize(
        self, request_iterator: AsyncIterator[tokenizer_pb2.TokenizeRequest], context: Any
    ) -> AsyncIterator[tokenizer_pb2.TokenizeResponse]:
        """Answers each request when the test lets it."""
        answers: asyncio.Queue[tokenizer_pb2.TokenizeResponse] = asyncio.Queue()
        tasks = {asyncio.create_task(self._read(request_iterator, answers))}
        try:
            while True:
                yield await answers.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(
        self, requests: AsyncIterator[tokenizer_pb2.TokenizeRequest], answers: asyncio.Queue[tokenizer_pb2.TokenizeResponse]
    ) -> None:
        async with asyncio.TaskGroup() as group:
            async for message in requests:
                for request in (message, *message.more):
                    if request.WhichOneof("work") == "cancel":
                        self.cancelled.append(request.request)
                    else:
                        self.asked.append(request)
                        group.create_task(self._answer(request, answers))

    async def _answer(self, request: tokenizer_pb2.TokenizeRequest, answers: asyncio.Queue[tokenizer_pb2.TokenizeResponse]) -> None:
        await self.flowing.wait()
        if request.request in self.cancelled:
            return
        response = tokenizer_pb2.TokenizeResponse(request=request.request)
        try:
            if request.WhichOneof("work") == "encode":
                response.encoded.CopyFrom(_encode(request.encode))
                response.encoded.prompt_end = self.prompt_end
            else:
                response.decoded.CopyFrom(_decode(request.decode))
        except ServiceError as error:
            response.error.CopyFrom(to_proto(error))
        answers.put_nowait(response)


def render(chat: tokenizer_pb2.ChatInput) -> str:
    """The fake's chat template."""
    tools = "".join(f"tool: {tool.name}\n" for tool in chat.tools)
    said = tools + "".join(f"{message.role}: {message.content}{_calls(message)}\n" for message in chat.messages)
    if chat.continue_final_message:
        return said.removesuffix("\n")
    return said if chat.HasField("add_generation_prompt") and not chat.add_generation_prompt else said + "assistant: "


def _calls(message: tokenizer_pb2.ChatMessage) -> str:
    return "".join(f" [{call.name} {call.arguments}]" for call in message.tool_calls)


def _encode(request: tokenizer_pb2.EncodeRequest) -> tokenizer_pb2.EncodeResponse:
    field = "messages" if request.HasField("chat") else "prompt"
    token_ids = list((render(request.chat) if request.HasField("chat") else request.text.text).encode())
    if request.WhichOneof("input") is None:
        token_ids = []
    if request.HasField("text") and request.text.add_special_tokens:
        token_ids = [BOS, *token_ids]
    is_cut = request.HasField("keep_last_tokens") and len(token_ids) > request.keep_last_tokens
    if is_cut:
        token_ids = token_ids[-request.keep_last_tokens :]
    if request.HasField("max_tokens") and len(token_ids) > request.max_tokens:
        raise PromptTooLong.of(got=len(token_ids), limit=request.max_tokens, field=field)
    sampling = _sampling(request.sampling) if request.HasField("sampling") else None
    system = request.chat.messages[0] if request.HasField("chat") and request.chat.messages[0].role == "system" else None
    return tokenizer_pb2.EncodeResponse(
        token_ids=token_ids,
        system_tokens=len(f"system: {system.content}\n".encode()) if system and not is_cut else 0,
        encode_us=1500,
        sampling=sampling,
    )


def _sampling(strings: tokenizer_pb2.SamplingStrings) -> tokenizer_pb2.SamplingIds:
    forms = (form for word in strings.bad_words for form in (word, f" {word}"))
    return tokenizer_pb2.SamplingIds(
        bad_words=[common_pb2.TokenSequence(token_ids=form.encode()) for form in forms],
        dry_breaker_ids=sorted({ord(one) for one in strings.dry_sequence_breakers if len(one) == 1 and one.isascii()}),
    )


def _decode(request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
    return tokenizer_pb2.DecodeResponse(
        text=bytes(token for token in request.token_ids if token < 256).decode("utf-8", "replace"),
        tokens=[f"<{token}>" for token in request.token_ids] if request.return_tokens else [],
    )
