"""Strings of sampling over real gRPC: in the turn of the prompt or alone, off the event loop, each failure its request's alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.input_limits import InputLimits
from tokenizer_svc.lanes import Lane, LaneLimits, Lanes
from tokenizer_svc.metrics import Metrics
from tokenizer_svc.model_folder import read_model_folder
from tokenizer_svc.servicer import TokenizerServicer
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import InvalidRequest, PromptTooLong, from_proto, from_rpc_error
from triserve.rpc.server import ServiceServer
from triserve.v1 import common_pb2, tokenizer_pb2_grpc
from triserve.v1 import tokenizer_pb2 as pb

PATIENCE_S = 30


class WatchedTokenizer(Tokenizer):
    """A tokenizer that says in which thread its vocabulary was gone through, and how often, and waits for the test."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read_model_folder(folder))
        self.threads: list[threading.Thread] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def token_texts(self) -> dict[int, str]:
        self.threads.append(threading.current_thread())
        assert self.go_on.wait(PATIENCE_S)
        return super().token_texts()


@pytest.fixture
def tokenizer(tmp_path: Path) -> WatchedTokenizer:
    return WatchedTokenizer(write_model_folder(tmp_path / "model"))


@asynccontextmanager
async def served(tokenizer: Tokenizer) -> AsyncIterator[Any]:
    """A stub of a server with one thread, which does all it may on the event loop."""
    lane = Lane("only", LaneLimits(threads=1, max_waiting=4, max_waiting_bytes=1 << 20))
    servicer = TokenizerServicer(
        tokenizer,
        None,
        limits=InputLimits(max_bytes=1 << 20, max_messages=16, template_arguments=frozenset()),
        lanes=Lanes(65536, [(1 << 20, lane)]),
        info=pb.GetTokenizerInfoResponse(),
        max_requests_per_stream=16,
        metrics=Metrics(CollectorRegistry()),
    )

    def register(server: grpc.aio.Server) -> None:
        tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)

    server = ServiceServer(["triserve.v1.TokenizerService"], register, "127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{server.port}") as channel:
            yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    finally:
        await server.stop(0)
        lane.close()


def asks(text: str | None = "Hello", bad_words: tuple[str, ...] = (), breakers: tuple[str, ...] = (), **fields: Any) -> pb.EncodeRequest:
    strings = pb.SamplingStrings(bad_words=bad_words, dry_sequence_breakers=breakers)
    return pb.EncodeRequest(text=None if text is None else pb.TextInput(text=text), sampling=strings, **fields)


async def test_prompt_and_strings_are_answered_in_one_turn(tokenizer: WatchedTokenizer) -> None:
    async with served(tokenizer) as stub:
        plain = await stub.Encode(pb.EncodeRequest(text=pb.TextInput(text="Hello")))
        both = await stub.Encode(asks(bad_words=("capital",), breakers=("\n", ":")))
        alone = await stub.Encode(asks(None, bad_words=("capital",), breakers=("\n", ":")))
    assert not plain.HasField("sampling")
    assert both.token_ids == plain.token_ids
    assert list(alone.token_ids) == []
    assert both.sampling == alone.sampling
    forms = [tokenizer.encode(form, add_special_tokens=False, field="x") for form in ("capital", " capital")]
    assert [list(word.token_ids) for word in both.sampling.bad_words] == forms
    texts = tokenizer.token_texts()
    assert list(both.sampling.dry_breaker_ids) == [index for index, text in texts.items() if "\n" in text or ":" in text]


async def test_without_an_input_there_must_be_strings(tokenizer: WatchedTokenizer) -> None:
    async with served(tokenizer) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Encode(pb.EncodeRequest())
        assert from_rpc_error(caught.value, peer="tokenizer").field == "input"
        assert (await stub.Encode(asks(None))).sampling == pb.SamplingIds()


async def test_a_vocabulary_is_gone_through_once_and_never_on_the_event_loop(tokenizer: WatchedTokenizer) -> None:
    async with served(tokenizer) as stub:
        await stub.Encode(asks(bad_words=("a",)))
        assert not tokenizer.threads, "words need no search"
        for breakers in (("\n",), (":",), ("\n",)):
            await stub.Encode(asks(breakers=breakers))
    assert len(tokenizer.threads) == 1
    assert tokenizer.threads[0] is not threading.main_thread()


async def test_while_it_is_gone_through_others_are_answered(tokenizer: WatchedTokenizer) -> None:
    tokenizer.go_on.clear()
    async with served(tokenizer) as stub:
        searching = asyncio.ensure_future(stub.Encode(asks(breakers=("\n",))))
        try:
            assert (await asyncio.wait_for(stub.Encode(asks(bad_words=("a",))), PATIENCE_S)).sampling.bad_words
            assert not searching.done()
        finally:
            tokenizer.go_on.set()
        assert (await asyncio.wait_for(searching, PATIENCE_S)).sampling.dry_breaker_ids


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (asks(bad_words=("",)), InvalidRequest, "bad_words"),
        (asks(bad_words=("x",) * 513), InvalidRequest, "bad_words"),
        (asks(bad_words=("\x01" * 64,)), InvalidRequest, "bad_words"),
        (asks(breakers=("x" * 41,)), InvalidRequest, "dry_sequence_breakers"),
        (asks("Hello all of you", bad_words=("a",), max_tokens=1), PromptTooLong, "prompt"),
    ],
)
async def test_a_failure_is_its_requests_alone(tokenizer: WatchedTokenizer, request_: Any, kind: type, field: str) -> None:
    async with served(tokenizer) as stub:
        stream = stub.Tokenize()
        for number, encode in enumerate((request_, asks(bad_words=("a",))), start=1):
            await stream.write(pb.TokenizeRequest(request=number, encode=encode))
        answers = {answer.request: answer for answer in [await stream.read(), await stream.read()]}
    error = from_proto(answers[1].error)
    assert (type(error), error.field) == (kind, field)
    assert answers[2].encoded.sampling.bad_words[0] == common_pb2.TokenSequence(
        token_ids=tokenizer.encode("a", add_special_tokens=False, field="x")
    )
