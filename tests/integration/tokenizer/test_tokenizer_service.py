"""The tokenize stage over real gRPC: unary calls, the multiplexed stream, limits, cancellation, draining."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from tests.fakes.tokenizers import CHATML, write_model_folder
from tokenizer_svc.chat_encoder import ChatEncoder
from tokenizer_svc.chat_template import ChatTemplate, RenderLimits
from tokenizer_svc.input_limits import InputLimits
from tokenizer_svc.lanes import Lane, LaneLimits, Lanes
from tokenizer_svc.metrics import Metrics
from tokenizer_svc.model_folder import read_model_folder
from tokenizer_svc.service import SERVICE, TokenizerService
from tokenizer_svc.servicer import TokenizerServicer
from tokenizer_svc.settings import Settings
from tokenizer_svc.system_prompts import SystemPrompts
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.errors import InvalidRequest, Overloaded, PromptTooLong, from_rpc_error
from triserve.rpc.fingerprint import fingerprint_of
from triserve.rpc.server import ServiceServer
from triserve.v1 import tokenizer_pb2 as pb
from triserve.v1 import tokenizer_pb2_grpc

PATIENCE_S = 30


class HeldTokenizer(Tokenizer):
    """A tokenizer that begins every long text but ends it only when the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read_model_folder(folder))
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.long_texts: list[str] = []

    def encode(
        self, text: str, *, add_special_tokens: bool, field: str, max_tokens: int | None = None, keep_last: int | None = None
    ) -> list[int]:
        if len(text) > 5000:
            self.long_texts.append(text)
            self.begun.release()
            assert self.go_on.wait(PATIENCE_S)
        return super().encode(text, add_special_tokens=add_special_tokens, field=field, max_tokens=max_tokens, keep_last=keep_last)

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=PATIENCE_S)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model_folder(
        tmp_path / "model",
        config={"eos_token_id": 3},
        generation_config={"eos_token_id": [5, 3], "do_sample": True, "temperature": 0.5, "top_p": 0.75},
    )


@asynccontextmanager
async def served(model_folder: Path, **values: Any) -> AsyncIterator[grpc.aio.Channel]:
    service = TokenizerService(Settings(model=model_folder, listen="127.0.0.1:0", **values))
    await service.start()
    try:
        async with open_channel(f"127.0.0.1:{service.port}") as channel:
            yield channel
    finally:
        await service.stop()


class HeldServer:
    """A server with one thread for long texts, whose tokenizer waits for the test."""

    def __init__(self, model_folder: Path) -> None:
        self.tokenizer = HeldTokenizer(model_folder)
        template = ChatTemplate(CHATML, {}, limits=RenderLimits())
        self.lane = Lane("long", LaneLimits(threads=1, max_waiting=2, max_waiting_bytes=1 << 20))
        self.servicer = TokenizerServicer(
            self.tokenizer,
            ChatEncoder(template, self.tokenizer, SystemPrompts(max_entries=1, max_bytes=0)),
            limits=InputLimits(max_bytes=1 << 20, max_messages=9, template_arguments=frozenset()),
            lanes=Lanes(2048, [(1 << 20, self.lane)]),
            info=pb.GetTokenizerInfoResponse(),
            max_requests_per_stream=8,
            metrics=Metrics(CollectorRegistry()),
        )

    def register(self, server: grpc.aio.Server) -> None:
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(self.servicer, server)


@asynccontextmanager
async def held(model_folder: Path) -> AsyncIterator[tuple[HeldServer, tokenizer_pb2_grpc.TokenizerServiceAsyncStub]]:
    made = HeldServer(model_folder)
    server = ServiceServer([SERVICE], made.register, "127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            yield made, stub_of(channel)
    finally:
        made.tokenizer.go_on.set()
        await server.stop(PATIENCE_S)
        made.lane.close()
        assert made.lane.join(PATIENCE_S)


def stub_of(channel: grpc.aio.Channel) -> tokenizer_pb2_grpc.TokenizerServiceAsyncStub:
    stub: tokenizer_pb2_grpc.TokenizerServiceAsyncStub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    return stub


def text_of(text: str, **options: Any) -> pb.EncodeRequest:
    return pb.EncodeRequest(text=pb.TextInput(text=text), **options)


def ended(turn: tuple[str, str], **how: Any) -> pb.EncodeRequest:
    """A chat of one turn, and how its prompt ends."""
    return pb.EncodeRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(role=turn[0], content=turn[1])], **how))


def chat_of(*turns: tuple[str, str], **options: Any) -> pb.EncodeRequest:
    return pb.EncodeRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(role=role, content=content) for role, content in turns]), **options)


def with_arguments(*arguments: pb.TemplateArgument) -> pb.EncodeRequest:
    return pb.EncodeRequest(chat=pb.ChatInput(messages=[pb.ChatMessage(role="user", content="x")], template_arguments=arguments))


def numbered(number: int, request: pb.EncodeRequest | pb.DecodeRequest) -> pb.TokenizeRequest:
    if isinstance(request, pb.EncodeRequest):
        return pb.TokenizeRequest(request=number, encode=request)
    return pb.TokenizeRequest(request=number, decode=request)


async def holds(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.001)


async def next_of(call: Any) -> pb.TokenizeResponse:
    response = await asyncio.wait_for(call.read(), PATIENCE_S)
    assert isinstance(response, pb.TokenizeResponse), "the stream goes on"
    return response


async def test_the_info_is_what_the_folder_says(model_folder: Path) -> None:
    async with served(model_folder) as channel:
        assert await is_ready(channel, SERVICE, timeout_s=PATIENCE_S)
        info = await stub_of(channel).GetTokenizerInfo(pb.GetTokenizerInfoRequest())
    tokenizer = Tokenizer(read_model_folder(model_folder))
    assert info.fingerprint == fingerprint_of(model_folder)
    assert info.vocab_size == tokenizer.vocab_size
    assert list(info.eos_token_ids) == [5, 3, tokenizer.token_id("</s>")]
    assert (info.has_chat_template, info.max_input_bytes) == (True, 4 * 1024 * 1024)
    assert list(info.template_arguments) == ["enable_thinking"], "of those callers may give, what the template reads"
    assert (info.chat_template, {one.name: one.content for one in info.special_tokens}["eos_token"]) == (CHATML, "</s>")
    assert (info.default_temperature, info.HasField("default_top_k"), info.default_top_p) == (0.5, False, 0.75)


async def test_text_and_chats_go_there_and_back(model_folder: Path) -> None:
    async with served(model_folder) as channel:
        stub = stub_of(channel)
        chat = await stub.Encode(chat_of(("system", "Be brief."), ("user", "Hello <|im_end|> 🙂")))
        shown = await stub.Decode(pb.DecodeRequest(token_ids=chat.token_ids, skip_special_tokens=False, return_tokens=True))
        hidden = await stub.Decode(pb.DecodeRequest(token_ids=chat.token_ids))
        system = await stub.Decode(pb.DecodeRequest(token_ids=chat.token_ids[: chat.system_tokens], skip_special_tokens=False))
        without_header = pb.ChatInput(messages=[pb.ChatMessage(role="user", content="x")], add_generation_prompt=False)
        bare = await stub.Encode(pb.EncodeRequest(chat=without_header))
        ended = await stub.Decode(pb.DecodeRequest(token_ids=bare.token_ids, skip_special_tokens=False))
    assert shown.text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <|im_end|> 🙂<|im_end|>\n<|im_start|>assistant\n"
    assert hidden.text == "system\nBe brief.\nuser\nHello <|im_end|> 🙂\nassistant\n"
    assert len(shown.tokens) == len(chat.token_ids) and not hidden.tokens
    assert system.text == "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert ended.text.endswith("x<|im_end|>\n")
    assert chat.encode_us > 0


async def test_the_end_of_a_prompt_is_kept_and_a_turn_left_open_where_that_is_asked_for(model_folder: Path) -> None:
    async with served(model_folder) as channel:
        stub = stub_of(channel)
        whole = await stub.Encode(chat_of(("system", "Be brief."), ("user", "Hello")))
        last = await stub.Encode(chat_of(("system", "Be brief."), ("user", "Hello"), keep_last_tokens=3, max_tokens=3))
        text = await stub.Encode(text_of("a b c d e", keep_last_tokens=2))
        open_turn = await stub.Encode(ended(("assistant", "It is "), continue_final_message=True))
        shown = await stub.Decode(pb.DecodeRequest(token_ids=open_turn.token_ids, skip_special_tokens=False))
    assert whole.system_tokens and not last.system_tokens
    assert list(last.token_ids) == list(whole.token_ids)[-3:]
    assert len(text.token_ids) == 2
    assert shown.text == "<|im_start|>assistant\nIt is "


async def test_an_unset_flag_is_true_and_false_is_false(tmp_path: Path) -> None:
    async with served(write_model_folder(tmp_path / "model", kind="prepending_bpe")) as channel:
        stub = stub_of(channel)
        unset = await stub.Encode(pb.EncodeRequest(text=pb.TextInput(text="a")))
        off = await stub.Encode(pb.EncodeRequest(text=pb.TextInput(text="a", add_special_tokens=False)))
    assert list(unset.token_ids)[1:] == list(off.token_ids)


@pytest.mark.parametrize(
    ("request_", "error", "field", "says"),
    [
        (pb.EncodeRequest(), InvalidRequest, "input", "input is not set"),
        (chat_of(), InvalidRequest, "messages", "messages is empty"),
        (chat_of(("", "x")), InvalidRequest, "messages[0].role", "1 to 64"),
        (text_of("x" * 2000), InvalidRequest, "prompt", "prompt has 2000 bytes, the limit is 1024"),
        (text_of("a b c d", max_tokens=3), PromptTooLong, "prompt", "tokens, the limit is 3"),
        (text_of("a", max_tokens=0), PromptTooLong, "prompt", "prompt has 1 tokens, the limit is 0"),
        (chat_of(("user", "hello"), max_tokens=2), PromptTooLong, "messages", "tokens, the limit is 2"),
        (text_of("a", keep_last_tokens=0), InvalidRequest, "keep_last_tokens", "the least is 1"),
        (ended(("user", "x"), continue_final_message=True), InvalidRequest, "continue_final_message", "must be an assistant's"),
        (
            ended(("assistant", "x"), continue_final_message=True, add_generation_prompt=True),
            InvalidRequest,
            "continue_final_message",
            "are both true",
        ),
        (with_arguments(pb.TemplateArgument(name="x", int_value=1)), InvalidRequest, "template_arguments", "'x', allowed are"),
        (with_arguments(pb.TemplateArgument(name="thinking")), InvalidRequest, "template_arguments", "without a value"),
        (with_arguments(*[pb.TemplateArgument(name="thinking", bool_value=True)] * 2), InvalidRequest, "template_arguments", "twice"),
        (pb.DecodeRequest(token_ids=[1] * 257), InvalidRequest, "token_ids", "has 257 ids, the limit is 256"),
    ],
)
async def test_a_bad_request_is_refused_alike_as_call_and_on_the_stream(
    model_folder: Path, request_: pb.EncodeRequest | pb.DecodeRequest, error: type[Exception], field: str, says: str
) -> None:
    async with served(model_folder, max_input_bytes=1024) as channel:
        stub = stub_of(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await (stub.Encode(request_) if isinstance(request_, pb.EncodeRequest) else stub.Decode(request_))
        refused = from_rpc_error(caught.value, peer="tokenizer")
        assert type(refused) is error
        assert refused.field == field and says in refused.message
        call = stub.Tokenize()
        await call.write(numbered(1, request_))
        answer = await next_of(call)
        assert (answer.error.reason, answer.error.field, answer.error.message) == (refused.reason, field, refused.message)
        await call.write(pb.TokenizeRequest(request=2, encode=text_of("fine")))
        assert (await next_of(call)).encoded.token_ids
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF


async def test_work_that_is_not_set_is_an_error_of_its_request_alone(model_folder: Path) -> None:
    async with served(model_folder) as channel:
        call = stub_of(channel).Tokenize()
        await call.write(pb.TokenizeRequest(request=9))
        answer = await next_of(call)
        assert (answer.request, answer.error.field) == (9, "work")
        call.cancel()


async def test_a_model_without_template_encodes_text_and_refuses_chats(tmp_path: Path) -> None:
    async with served(write_model_folder(tmp_path / "model", template=None)) as channel:
        stub = stub_of(channel)
        assert not (await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())).has_chat_template
        assert (await stub.Encode(text_of("hi"))).token_ids
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(chat_of(("user", "hi")))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "no chat template" in (caught.value.details() or "")


async def test_bytes_that_are_no_message_harm_nobody_else(model_folder: Path) -> None:
    async with served(model_folder) as channel:
        raw: Any = channel.unary_unary(f"/{SERVICE}/Encode")
        invalid_utf8 = bytes([0x0A, 0x04, 0x0A, 0x02, 0xFF, 0xFE])
        for payload in (invalid_utf8, b"\xff" * 9):
            with pytest.raises(grpc.aio.AioRpcError):
                await raw(payload)
        assert (await stub_of(channel).Encode(text_of("fine"))).token_ids


async def test_many_requests_at_once_are_each_answered_once_and_rightly(model_folder: Path) -> None:
    texts = {number: f"text {number} " * (1 + number * number % 700) for number in range(300)}
    tokenizer = Tokenizer(read_model_folder(model_folder))
    async with served(model_folder, threads=2) as channel:
        call = stub_of(channel).Tokenize()

        async def send() -> None:
            for number, text in texts.items():
                await call.write(pb.TokenizeRequest(request=number, encode=text_of(text)))
            await call.done_writing()

        sender = asyncio.create_task(send())
        answers = {answer.request: answer async for answer in call}
        await sender
    assert sorted(answers) == sorted(texts)
    for number, answer in answers.items():
        assert list(answer.encoded.token_ids) == tokenizer.encode(texts[number], add_special_tokens=True, field="")


async def test_a_long_prompt_does_not_delay_a_short_one(model_folder: Path) -> None:
    async with held(model_folder) as (server, stub):
        call = stub.Tokenize()
        await call.write(pb.TokenizeRequest(request=1, encode=text_of("long " * 20_000)))
        await server.tokenizer.until_begun()
        await call.write(pb.TokenizeRequest(request=2, encode=text_of("short")))
        await call.write(pb.TokenizeRequest(request=3, encode=chat_of(("user", "short"))))
        await call.write(pb.TokenizeRequest(request=4, decode=pb.DecodeRequest(token_ids=[1])))
        assert [(await next_of(call)).request for _ in range(3)] == [2, 3, 4]
        assert (await stub.Encode(text_of("short too"))).token_ids
        server.tokenizer.go_on.set()
        answer = await next_of(call)
        assert answer.request == 1 and len(answer.encoded.token_ids) > 20_000
        call.cancel()


async def test_a_queued_request_is_dropped_by_a_cancel_and_the_stream_goes_on(model_folder: Path) -> None:
    async with held(model_folder) as (server, stub):
        call = stub.Tokenize()
        for number in (1, 2, 3):
            await call.write(pb.TokenizeRequest(request=number, encode=text_of(f"{number} " * 4000)))
        await holds(lambda: server.lane.num_waiting == 2)
        await call.write(pb.TokenizeRequest(request=2, cancel=True))
        await holds(lambda: server.lane.num_waiting == 1)
        server.tokenizer.go_on.set()
        assert [(await next_of(call)).request for _ in range(2)] == [1, 3]
        await call.done_writing()
        assert await call.read() == grpc.aio.EOF
    assert [text[0] for text in server.tokenizer.long_texts] == ["1", "3"]


@pytest.mark.parametrize("ends", ["cancel", "deadline"])
async def test_a_call_that_ends_takes_its_request_out_of_the_queue(model_folder: Path, ends: str) -> None:
    async with held(model_folder) as (server, stub):
        first = stub.Encode(text_of("1 " * 4000))
        await server.tokenizer.until_begun()
        second = stub.Encode(text_of("2 " * 4000), timeout=0.2 if ends == "deadline" else None)
        await holds(lambda: server.lane.num_waiting == 1)
        if ends == "cancel":
            second.cancel()
        await holds(lambda: server.lane.num_waiting == 0)
        server.tokenizer.go_on.set()
        assert (await first).token_ids
        assert len(server.tokenizer.long_texts) == 1


async def test_a_stream_that_ends_takes_its_requests_out_of_the_queue(model_folder: Path) -> None:
    async with held(model_folder) as (server, stub):
        call = stub.Tokenize()
        for number in (1, 2, 3):
            await call.write(pb.TokenizeRequest(request=number, encode=text_of(f"{number} " * 4000)))
        await server.tokenizer.until_begun()
        await holds(lambda: server.lane.num_waiting == 2)
        call.cancel()
        await holds(lambda: server.lane.num_waiting == 0)


async def test_a_full_queue_refuses_and_short_requests_still_pass(model_folder: Path) -> None:
    async with held(model_folder) as (server, stub):
        call = stub.Tokenize()
        await call.write(pb.TokenizeRequest(request=1, encode=text_of("1 " * 4000)))
        await server.tokenizer.until_begun()
        for number in (2, 3, 4):
            await call.write(pb.TokenizeRequest(request=number, encode=text_of(f"{number} " * 4000)))
        answer = await next_of(call)
        assert (answer.request, answer.error.reason) == (4, Overloaded.reason)
        assert "the limit is 2" in answer.error.message
        assert (await stub.Encode(text_of("short"))).token_ids
        call.cancel()


async def test_stopping_ends_idle_streams_at_once_and_health_says_so_first(model_folder: Path) -> None:
    service = TokenizerService(Settings(model=model_folder, listen="127.0.0.1:0", drain_timeout_s=PATIENCE_S))
    await service.start()
    async with open_channel(f"127.0.0.1:{service.port}") as channel:
        call = stub_of(channel).Tokenize()
        await call.write(pb.TokenizeRequest(request=1, encode=text_of("hi")))
        assert (await next_of(call)).request == 1
        async with asyncio.timeout(PATIENCE_S / 2):
            await service.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stage_in_which_nothing_moves_is_not_ready_until_it_does(model_folder: Path) -> None:
    service = TokenizerService(Settings(model=model_folder, listen="127.0.0.1:0", threads=1, stall_timeout_s=0.02))
    await service.start()
    go_on = threading.Event()
    try:
        async with open_channel(f"127.0.0.1:{service.port}") as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            for _ in range(2):
                service._lanes.submit(go_on.wait, 10_000)
            assert (await asyncio.wait_for(watch.read(), PATIENCE_S)).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await stub_of(channel).Encode(text_of("short"))).token_ids
            assert await is_ready(channel, "", timeout_s=PATIENCE_S)
            go_on.set()
            assert (await asyncio.wait_for(watch.read(), PATIENCE_S)).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
    finally:
        go_on.set()
        await service.stop()
