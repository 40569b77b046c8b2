"""Requests that are asked together go to a tokenizer in one message, where it takes that; each gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.clients.tokenizer import TokenizerPeer
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import eventually
from triserve.rpc.errors import PromptTooLong
from triserve.v1 import tokenizer_pb2

MIB = 1024 * 1024


class Counting(FakeTokenizer):
    """Notes how many requests come in each message, and may answer all that came so far in one."""

    def __init__(self, **info: Any) -> None:
        super().__init__(**info)
        self.sizes: list[int] = []
        self.gathers = False

    async def Tokenize(self, request_iterator: Any, context: Any) -> AsyncIterator[tokenizer_pb2.TokenizeResponse]:
        async def counted() -> AsyncIterator[tokenizer_pb2.TokenizeRequest]:
            async for message in request_iterator:
                self.sizes.append(1 + len(message.more))
                yield message

        answers: list[tokenizer_pb2.TokenizeResponse] = []
        async for answer in super().Tokenize(counted(), context):
            answers.append(answer)
            if not self.gathers or len(answers) == sum(self.sizes):
                first, *others = answers
                first.more.extend(others)
                answers = []
                yield first


@asynccontextmanager
async def connected(
    tokenizer: FakeTokenizer, *, ready: Callable[[TokenizerPeer], bool] = lambda peer: peer.ready
) -> AsyncIterator[TokenizerPeer]:
    await tokenizer.start()
    peer = TokenizerPeer(tokenizer.target, on_change=lambda: None)
    peer.start()
    try:
        await eventually(lambda: ready(peer))
        yield peer
    finally:
        await peer.close()
        await tokenizer.kill()


def encode(text: str, **fields: Any) -> tokenizer_pb2.EncodeRequest:
    return tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=text, add_special_tokens=False), **fields)


async def test_what_is_asked_at_once_is_one_message_and_each_gets_its_own_answer() -> None:
    tokenizer = Counting()
    tokenizer.gathers = True
    async with connected(tokenizer) as peer:
        texts = [f"text {number}" for number in range(40)]
        answers = await asyncio.gather(*(peer.encode(encode(text)) for text in texts))
        assert [bytes(answer.token_ids).decode() for answer in answers] == texts
        assert tokenizer.sizes == [40]


async def test_a_message_has_at_most_64_requests() -> None:
    tokenizer = Counting()
    async with connected(tokenizer) as peer:
        await asyncio.gather(*(peer.encode(encode("a")) for _ in range(150)))
        assert tokenizer.sizes == [64, 64, 22]


async def test_long_prompts_go_in_messages_of_their_own() -> None:
    tokenizer = Counting()
    async with connected(tokenizer) as peer:
        lengths = [10, MIB, 20, 30]
        answers = await asyncio.gather(*(peer.encode(encode("a" * length)) for length in lengths))
        assert [len(answer.token_ids) for answer in answers] == lengths
        assert tokenizer.sizes == [1, 1, 2]


async def test_a_tokenizer_that_does_not_say_that_it_takes_several_gets_one_at_a_time() -> None:
    tokenizer = Counting(takes_more=False)
    async with connected(tokenizer) as peer:
        await asyncio.gather(*(peer.encode(encode("a")) for _ in range(3)))
        assert tokenizer.sizes == [1, 1, 1]


async def test_one_of_several_that_is_refused_or_cancelled_harms_none_of_the_others() -> None:
    tokenizer = Counting()
    tokenizer.flowing.clear()
    async with connected(tokenizer) as peer:
        fine, long, left = (asyncio.create_task(peer.encode(one)) for one in (encode("fine"), encode("long", max_tokens=1), encode("left")))
        await eventually(lambda: tokenizer.sizes == [3])
        left.cancel()
        await eventually(lambda: tokenizer.cancelled == [3])
        tokenizer.flowing.set()
        assert bytes((await fine).token_ids) == b"fine"
        with pytest.raises(PromptTooLong):
            await long
        assert peer.in_flight == 0


async def test_what_is_cancelled_before_it_is_sent_is_not_sent() -> None:
    tokenizer = Counting()
    async with connected(tokenizer) as peer:
        first, second = asyncio.create_task(peer.encode(encode("a"))), asyncio.create_task(peer.encode(encode("b")))
        await asyncio.sleep(0)
        first.cancel()
        assert bytes((await second).token_ids) == b"b"
        assert tokenizer.sizes == [1] and not tokenizer.cancelled


async def test_answers_within_one_of_several_answers_end_the_session() -> None:
    class Nesting(FakeTokenizer):
        async def Tokenize(self, request_iterator: Any, context: Any) -> AsyncIterator[tokenizer_pb2.TokenizeResponse]:
            async for answer in super().Tokenize(request_iterator, context):
                inner = tokenizer_pb2.TokenizeResponse(request=answer.request, more=[answer])
                yield tokenizer_pb2.TokenizeResponse(request=answer.request, encoded=answer.encoded, more=[inner])

    async with connected(Nesting()) as peer:
        await peer.encode(encode("a"))
        await eventually(lambda: "more is set in one of more" in peer.problem)
