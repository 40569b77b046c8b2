"""What a tokenizer says of words and breakers is held against what was asked, and so are the author's defaults it publishes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.fake_tokenizer import VOCAB_SIZE
from tests.fakes.gateway_fleet import eventually
from tests.unit.gateway.clients.test_tokenizer import Peer, encode
from triserve.rpc import limits
from triserve.rpc.errors import Unavailable
from triserve.v1 import common_pb2, tokenizer_pb2

Ids, Strings, Word = tokenizer_pb2.SamplingIds, tokenizer_pb2.SamplingStrings, common_pb2.TokenSequence
WORDS, BREAKERS = Strings(bad_words=["a", "b"]), Strings(dry_sequence_breakers=["\n"])
LAST, MOST = VOCAB_SIZE - 1, limits.MAX_LISTED_TOKEN_IDS


def answer(ids: tokenizer_pb2.SamplingIds) -> Any:
    return {"encoded": tokenizer_pb2.EncodeResponse(token_ids=[1], sampling=ids)}


@pytest.mark.parametrize(
    ("strings", "ids", "what"),
    [
        (None, Ids(bad_words=[Word(token_ids=[1])]), "bad_words has 1 sequences, there are 0 words"),
        (None, Ids(dry_breaker_ids=[1]), "dry_breaker_ids has 1 ids, the limit is 0"),
        (WORDS, Ids(bad_words=[Word(token_ids=[1])], dry_breaker_ids=[1]), "dry_breaker_ids has 1 ids, the limit is 0"),
        (WORDS, Ids(), "bad_words has 0 sequences, there are 2 words"),
        (WORDS, Ids(bad_words=[Word(token_ids=[1])] * 5), "bad_words has 5 sequences, there are 2 words"),
        (WORDS, Ids(bad_words=[Word(token_ids=[1]), Word()]), "bad_words has a sequence of 0 ids, the limit is 64"),
        (WORDS, Ids(bad_words=[Word(token_ids=[1] * 65)]), "bad_words has a sequence of 65 ids, the limit is 64"),
        (WORDS, Ids(bad_words=[Word(token_ids=[1, LAST + 1])]), f"sampling has id {LAST + 1}, the limit is {LAST}"),
        (BREAKERS, Ids(dry_breaker_ids=[LAST + 1, 0]), f"sampling has id {LAST + 1}, the limit is {LAST}"),
        (BREAKERS, Ids(dry_breaker_ids=[1] * (MOST + 1)), f"dry_breaker_ids has {MOST + 1} ids, the limit is {MOST}"),
    ],
)
async def test_ids_that_cannot_be_those_of_the_strings_are_no_answer(
    strings: tokenizer_pb2.SamplingStrings | None, ids: tokenizer_pb2.SamplingIds, what: str
) -> None:
    async with Peer([answer(ids)]) as peer:
        await eventually(lambda: peer.ready)
        with pytest.raises(Unavailable, match=what):
            await asyncio.wait_for(peer.encode(encode(sampling=strings)), 20)


@pytest.mark.parametrize(
    ("strings", "ids"),
    [
        (WORDS, Ids(bad_words=[Word(token_ids=[LAST])])),
        (WORDS, Ids(bad_words=[Word(token_ids=[0] * 64)] * 4)),
        (BREAKERS, Ids()),
        (BREAKERS, Ids(dry_breaker_ids=[LAST] * MOST)),
    ],
)
async def test_ids_at_their_limits_are_taken(strings: tokenizer_pb2.SamplingStrings, ids: tokenizer_pb2.SamplingIds) -> None:
    async with Peer([answer(ids)]) as peer:
        await eventually(lambda: peer.ready)
        assert (await asyncio.wait_for(peer.encode(encode(sampling=strings)), 20)).sampling == ids


@pytest.mark.parametrize(
    ("name", "wrong"), [("default_min_p", 1.5), ("default_typical_p", 0.0), ("default_typical_p", 1.5), ("default_repetition_penalty", 0.0)]
)
async def test_a_default_that_no_request_could_have_is_not_taken(name: str, wrong: float) -> None:
    async with Peer([], info={name: wrong}) as peer:
        await eventually(lambda: name in peer.problem)
        assert not peer.ready
