"""A tokenizer's word is held against what was asked: one that cannot be true costs the session, and no request gets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.clients.tokenizer import TokenizerPeer
from tests.fakes.fake_tokenizer import VOCAB_SIZE
from tests.fakes.gateway_fleet import eventually
from tests.fakes.hostile_stages import Deed, HostileTokenizer
from triserve.rpc.errors import InvalidRequest, Unavailable
from triserve.v1 import common_pb2, tokenizer_pb2

Encoded, Decoded = tokenizer_pb2.EncodeResponse, tokenizer_pb2.DecodeResponse


class Peer:
    """A tokenizer with manners of its own, and the session with it."""

    def __init__(self, deeds: list[Deed], info: Deed | None = None) -> None:
        # The stream outlives any machine's slowness: what ends it is the lie.
        self.tokenizer = HostileTokenizer(deeds, {} if info is None else info, lifetime_s=60.0)
        self.session: TokenizerPeer | None = None

    async def __aenter__(self) -> TokenizerPeer:
        await self.tokenizer.fake.start()
        server = await self.tokenizer.server.__aenter__()
        self.session = TokenizerPeer(server.target, on_change=lambda: None)
        self.session.start()
        return self.session

    async def __aexit__(self, *_: object) -> None:
        assert self.session is not None
        await self.session.close()
        await self.tokenizer.server.__aexit__()
        await self.tokenizer.fake.kill()


def encode(text: str = "abc", **fields: Any) -> tokenizer_pb2.EncodeRequest:
    return tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=text), **fields)


LIES: dict[str, Deed] = {
    "nothing": {"encoded": Encoded(), "request": 0},
    "of another kind": {"decoded": Decoded(text="abc")},
    "an id without a token": {"encoded": Encoded(token_ids=[VOCAB_SIZE])},
    "more ids than allowed": {"encoded": Encoded(token_ids=[1] * 5)},
    "a system prompt longer than all": {"encoded": Encoded(token_ids=[1], system_tokens=2)},
    "of a request that was never made": {"request": 99},
    "no message": b"\xff\xff\xff",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_an_answer_that_cannot_be_true_is_no_answer(lie: Deed) -> None:
    async with Peer([lie]) as peer:
        await eventually(lambda: peer.ready)
        with pytest.raises(Unavailable, match="the tokenizer process that had the request was lost: it sent a malformed message"):
            await asyncio.wait_for(peer.encode(encode(max_tokens=4)), 20)


@pytest.mark.parametrize("tokens", [[], ["a"], ["a", "b", "c"]], ids=len)
async def test_token_strings_are_as_many_as_ids(tokens: list[str]) -> None:
    async with Peer([{"decoded": Decoded(text="ab", tokens=tokens)}]) as peer:
        await eventually(lambda: peer.ready)
        with pytest.raises(Unavailable, match="tokens has"):
            await asyncio.wait_for(peer.decode(tokenizer_pb2.DecodeRequest(token_ids=[97, 98], return_tokens=True)), 20)


@pytest.mark.parametrize("answer", [Encoded(token_ids=[0, VOCAB_SIZE - 1], system_tokens=2), Encoded()], ids=["the last id", "no ids"])
async def test_an_answer_at_its_limits_is_taken(answer: tokenizer_pb2.EncodeResponse) -> None:
    async with Peer([{"encoded": answer}]) as peer:
        await eventually(lambda: peer.ready)
        assert await asyncio.wait_for(peer.encode(encode(max_tokens=2)), 20) == answer


async def test_more_of_the_last_ids_than_were_asked_for_are_no_answer() -> None:
    async with Peer([{"encoded": Encoded(token_ids=[1] * 3)}]) as peer:
        await eventually(lambda: peer.ready)
        with pytest.raises(Unavailable, match="malformed message"):
            await asyncio.wait_for(peer.encode(encode(max_tokens=4, keep_last_tokens=2)), 20)


async def test_an_error_is_the_requests_alone() -> None:
    async with Peer([{"error": common_pb2.Error(code=3, reason="INVALID_REQUEST", message="text is odd")}, {}]) as peer:
        await eventually(lambda: peer.ready)
        with pytest.raises(InvalidRequest, match="text is odd"):
            await asyncio.wait_for(peer.encode(encode()), 20)
        assert list((await asyncio.wait_for(peer.encode(encode()), 20)).token_ids) == [*b"abc"]


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"eos_token_ids": [1] * 5000}, "eos_token_ids has 5000 ids"),
        ({"default_temperature": float("nan")}, "default_temperature is nan"),
        ({"default_top_p": 0.0}, "default_top_p is 0"),
        ({"additional_special_tokens": ["<x>"] * 65_537}, "special_tokens has 65537 tokens"),
        ({"chat_template": "x" * (1 << 20) + "x"}, "chat_template has 1048577 characters"),
        (b"\xff\xff", "its information is none"),
    ],
    ids=["vocabulary", "ends", "temperature", "top_p", "special tokens", "template", "garbage"],
)
async def test_a_tokenizer_that_says_what_no_tokenizer_is_gets_no_request(info: Deed, problem: str) -> None:
    async with Peer([], info) as peer:
        await eventually(lambda: problem in peer.problem)
        assert not peer.ready
        with pytest.raises(Unavailable, match="no session"):
            await peer.encode(encode())
