"""Filters, rules and words of sampling, from HTTP and gRPC to what compute is asked, through a tokenizer that turns strings into ids."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import BOS, EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import InvalidRequest, from_rpc_error
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, tokenizer_pb2

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]
ROUTES = [(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "Hello"}), (COMPLETION, {"prompt": [72, 105]})]
ROUTE_IDS = ["chat", "completion", "completion of ids"]


def words(*texts: str) -> list[common_pb2.TokenSequence]:
    """What the fake tokenizer makes of bad words, in the order of their ids."""
    return [common_pb2.TokenSequence(token_ids=ids) for ids in sorted(form.encode() for text in texts for form in (text, f" {text}"))]


USUAL_BREAKERS = sorted(map(ord, '\n:"*'))
# What a client sends, and what becomes of it.
PARAMETERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"typical_p": 0.5}, {"typical_p": 0.5}),
    ({"top_n_sigma": 1.5}, {"top_n_sigma": 1.5}),
    ({"top_n_sigma": 2}, {"top_n_sigma": 2}),
    ({"xtc_probability": 0.25}, {"xtc_probability": 0.25}),
    ({"xtc_probability": 0.25, "xtc_threshold": 0.125}, {"xtc_probability": 0.25, "xtc_threshold": 0.125}),
    ({"dry_multiplier": 0.5}, {"dry_multiplier": 0.5, "dry_breaker_ids": USUAL_BREAKERS}),
    ({"dry_multiplier": 0.5, "dry_sequence_breakers": []}, {"dry_multiplier": 0.5}),
    ({"dry_multiplier": 0.5, "dry_sequence_breakers": ["z", "a"]}, {"dry_multiplier": 0.5, "dry_breaker_ids": [97, 122]}),
    (
        {"dry_multiplier": 0.5, "dry_base": 2.5, "dry_allowed_length": 4, "dry_sequence_breakers": []},
        {"dry_multiplier": 0.5, "dry_base": 2.5, "dry_allowed_length": 4},
    ),
    ({"allowed_token_ids": [70, 65, 70]}, {"allowed_token_ids": [65, 70]}),
    ({"banned_token_ids": [70, 65, 70]}, {"banned_token_ids": [65, 70]}),
    ({"bad_words": ["ab", "é"]}, {"bad_words": words("ab", "é")}),
    ({"bad_words": ["ab"], "banned_token_ids": []}, {"bad_words": words("ab")}),
]
ALL_GIVEN = {
    "typical_p": 0.5,
    "top_n_sigma": 1.5,
    "xtc_probability": 0.25,
    "xtc_threshold": 0.125,
    "dry_multiplier": 0.5,
    "dry_base": 2.5,
    "dry_allowed_length": 4,
    "dry_sequence_breakers": ["x"],
    "allowed_token_ids": [65, 66, 67],
    "banned_token_ids": [67],
    "bad_words": ["ab"],
}
ALL_MADE = {
    **{name: value for name, value in ALL_GIVEN.items() if name != "dry_sequence_breakers"},
    "dry_breaker_ids": [ord("x")],
    "bad_words": words("ab"),
}
NOTHING: list[dict[str, Any]] = [
    {},
    dict.fromkeys(ALL_GIVEN),
    {"typical_p": 1},
    {"top_n_sigma": -1},
    {"top_n_sigma": 0},
    {"xtc_probability": 0, "xtc_threshold": 0.5},
    {"dry_multiplier": 0, "dry_base": 2, "dry_allowed_length": 5, "dry_sequence_breakers": ["x"], "dry_penalty_last_n": -1},
    {"banned_token_ids": [], "bad_words": []},
]


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


@pytest.fixture
async def stub(fleet: GatewayFleet) -> AsyncIterator[Any]:
    channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
    yield chat_pb2_grpc.ChatServiceStub(channel)
    await channel.close()


async def accepted(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> None:
    async with session.post(route, json={"seed": 1, "max_tokens": 3, **body}, headers={"Cache-Control": "no-store"}) as response:
        assert response.status == 200, await response.text()


async def refused(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> tuple[str, str]:
    async with session.post(route, json=body) as response:
        error = (await response.json())["error"]
        assert (response.status, error["type"]) == (400, "invalid_request_error"), error
        return error["param"], error["message"]


def made(**fields: Any) -> common_pb2.SamplingParams:
    return common_pb2.SamplingParams(**{"temperature": 1, "seed": 1, **fields})


@pytest.mark.parametrize(("route", "prompt"), ROUTES, ids=ROUTE_IDS)
async def test_each_parameter_arrives_alone_and_nothing_else_is_set(
    session: aiohttp.ClientSession, fleet: GatewayFleet, route: str, prompt: dict[str, Any]
) -> None:
    for given, expected in [*PARAMETERS, (ALL_GIVEN, ALL_MADE), *((given, {}) for given in NOTHING)]:
        await accepted(session, route, {**prompt, **given})
        assert fleet.compute.submitted[-1].sampling == made(**expected), given


async def test_every_parameter_arrives_through_grpc(stub: Any, fleet: GatewayFleet) -> None:
    def ask(sampling: common_pb2.SamplingParams, **fields: Any) -> chat_pb2.ChatRequest:
        message = tokenizer_pb2.ChatMessage(role="user", content="Hello")
        return chat_pb2.ChatRequest(
            messages=[message], sampling=sampling, stopping=common_pb2.StoppingParams(max_tokens=3), bypass_cache=True, **fields
        )

    cases: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
        ({}, {}, {}),
        *(({name: value}, {}, {name: value}) for name, value in (("typical_p", 0.5), ("top_n_sigma", 1.5), ("xtc_probability", 0.25))),
        ({"allowed_token_ids": [66, 65]}, {}, {"allowed_token_ids": [65, 66]}),
        ({"banned_token_ids": [66, 65]}, {}, {"banned_token_ids": [65, 66]}),
        ({"bad_words": [common_pb2.TokenSequence(token_ids=[1, 2])]}, {}, {"bad_words": [common_pb2.TokenSequence(token_ids=[1, 2])]}),
        ({}, {"bad_words": ["ab"]}, {"bad_words": words("ab")}),
        (
            {"bad_words": [common_pb2.TokenSequence(token_ids=[1, 2]), *words("ab")]},
            {"bad_words": ["ab"]},
            {"bad_words": [common_pb2.TokenSequence(token_ids=[1, 2]), *words("ab")]},
        ),
        ({"dry_multiplier": 0.5}, {}, {"dry_multiplier": 0.5, "dry_breaker_ids": USUAL_BREAKERS}),
        ({"dry_multiplier": 0.5, "dry_breaker_ids": [9, 8]}, {}, {"dry_multiplier": 0.5, "dry_breaker_ids": [8, 9]}),
        ({"dry_multiplier": 0.5}, {"dry_sequence_breakers": {}}, {"dry_multiplier": 0.5}),
        (
            {"dry_multiplier": 0.5, "dry_breaker_ids": [200]},
            {"dry_sequence_breakers": {"strings": ["b"]}},
            {"dry_multiplier": 0.5, "dry_breaker_ids": [98, 200]},
        ),
        ({"dry_breaker_ids": [9]}, {"dry_sequence_breakers": {"strings": ["b"]}}, {}),
        (
            {name: value for name, value in ALL_GIVEN.items() if name not in ("dry_sequence_breakers", "bad_words")},
            {"dry_sequence_breakers": {"strings": ["x"]}, "bad_words": ["ab"]},
            ALL_MADE,
        ),
    ]
    for number, (sampling, fields, expected) in enumerate(cases):
        request = ask(common_pb2.SamplingParams(**sampling, seed=1), **fields)
        async for _ in stub.Chat(request):
            pass
        assert len(fleet.compute.submitted) == number + 1
        assert fleet.compute.submitted[-1].sampling == made(**expected), (sampling, fields)


async def test_where_there_are_no_strings_the_tokenizer_is_asked_for_nothing_more(
    session: aiohttp.ClientSession, fleet: GatewayFleet
) -> None:
    await accepted(session, CHAT, {"messages": HELLO, "typical_p": 0.5, "allowed_token_ids": [65], "dry_sequence_breakers": ["x"]})
    (asked,) = fleet.tokenizer.asked
    assert not asked.encode.HasField("sampling")
    await accepted(session, COMPLETION, {"prompt": [72, 105], "typical_p": 0.5, "dry_multiplier": 1, "dry_sequence_breakers": []})
    assert len(fleet.tokenizer.asked) == 1


@pytest.mark.parametrize(("route", "prompt"), ROUTES, ids=ROUTE_IDS)
async def test_strings_and_prompt_are_encoded_in_one_turn(
    session: aiohttp.ClientSession, fleet: GatewayFleet, route: str, prompt: dict[str, Any]
) -> None:
    await accepted(session, route, {**prompt, "bad_words": ["ab"], "dry_multiplier": 1, "n": 2})
    (asked,) = fleet.tokenizer.asked
    assert asked.encode.sampling == tokenizer_pb2.SamplingStrings(bad_words=["ab"], dry_sequence_breakers=["\n", ":", '"', "*"])
    assert (asked.encode.WhichOneof("input") is None) is isinstance(prompt.get("prompt"), list)
    first, second = fleet.compute.submitted
    assert list(first.token_ids) == list(second.token_ids) != []
    assert first.sampling.bad_words == second.sampling.bad_words == words("ab")


@pytest.mark.parametrize(("prompts", "asks"), [(["a", "b", "c"], 3), ([[97], [98], [99]], 1)], ids=["texts", "ids"])
async def test_of_several_prompts_one_takes_the_strings_along_for_all(
    session: aiohttp.ClientSession, fleet: GatewayFleet, prompts: list[Any], asks: int
) -> None:
    await accepted(session, COMPLETION, {"prompt": prompts, "bad_words": ["ab"]})
    assert [asked.encode.HasField("sampling") for asked in fleet.tokenizer.asked] == [True] + [False] * (asks - 1)
    assert [list(request.token_ids)[-1] for request in fleet.compute.submitted] == [97, 98, 99]
    assert all(request.sampling.bad_words == words("ab") for request in fleet.compute.submitted)


async def test_the_authors_typical_p_is_used_where_the_client_says_nothing() -> None:
    tokenizer = FakeTokenizer(default_typical_p=0.5)
    async with running_fleet(tokenizers=[tokenizer]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for given in ({}, {"typical_p": 1}, {"typical_p": 0.25}, {"temperature": 0}):
            await accepted(session, COMPLETION, {"prompt": "a", **given})
        silent, off, own, greedy = (request.sampling for request in fleet.compute.submitted)
        assert (silent.typical_p, own.typical_p) == (0.5, 0.25)
        assert not off.HasField("typical_p") and not greedy.HasField("typical_p")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"typical_p": 0}, "typical_p", "typical_p is 0, the range is (0, 1]"),
    ({"typical_p": 1.5, "temperature": 0}, "typical_p", "typical_p is 1.5, the range is (0, 1]"),
    ({"typical_p": "high"}, "typical_p", "typical_p: "),
    ({"typical_p": True}, "typical_p", "typical_p: "),
    ({"top_n_sigma": -2}, "top_n_sigma", "top_n_sigma is -2, the range is (0, 100]"),
    ({"top_n_sigma": 101}, "top_n_sigma", "top_n_sigma is 101, the range is (0, 100]"),
    ({"xtc_probability": 1.1}, "xtc_probability", "xtc_probability is 1.1, the range is [0, 1]"),
    ({"xtc_probability": 0, "xtc_threshold": 0}, "xtc_threshold", "xtc_threshold is 0, the range is (0, 1]"),
    ({"dry_multiplier": -1}, "dry_multiplier", "dry_multiplier is -1, the range is [0, 100]"),
    ({"dry_base": 0.5}, "dry_base", "dry_base is 0.5, the range is [1, 10]"),
    ({"dry_allowed_length": 0}, "dry_allowed_length", "dry_allowed_length is 0, the range is [1, 64]"),
    ({"dry_allowed_length": 65}, "dry_allowed_length", "dry_allowed_length is 65, the range is [1, 64]"),
    ({"dry_allowed_length": 2.5}, "dry_allowed_length", "dry_allowed_length: "),
    ({"dry_penalty_last_n": 64}, "dry_penalty_last_n", "dry_penalty_last_n is not supported, it may be -1"),
    ({"dry_sequence_breakers": "x"}, "dry_sequence_breakers", "dry_sequence_breakers: "),
    ({"dry_sequence_breakers": [7]}, "dry_sequence_breakers[0]", "dry_sequence_breakers[0]: "),
    ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers", "dry_sequence_breakers has a string of 0 characters, the range is [1, 40]"),
    ({"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers", "has a string of 41 characters, the range is [1, 40]"),
    ({"dry_sequence_breakers": ["x"] * 17}, "dry_sequence_breakers", "dry_sequence_breakers has 17 strings, the limit is 16"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "allowed_token_ids is empty: nothing could be drawn"),
    ({"allowed_token_ids": [258]}, "allowed_token_ids", "allowed_token_ids has token id 258, ids are in [0, 258)"),
    ({"allowed_token_ids": [1] * 16385}, "allowed_token_ids", "allowed_token_ids has 16385 ids, the limit is 16384"),
    ({"allowed_token_ids": 7}, "allowed_token_ids", "allowed_token_ids: "),
    ({"allowed_token_ids": ["7"]}, "allowed_token_ids[0]", "allowed_token_ids[0]: "),
    ({"allowed_token_ids": [7, 8], "banned_token_ids": [8, 7]}, "banned_token_ids", "leaves none of the 2 tokens that are allowed"),
    ({"allowed_token_ids": [EOS], "min_tokens": 1}, "min_tokens", "every token that is allowed ends the answer"),
    ({"banned_token_ids": [-1]}, "banned_token_ids", "banned_token_ids has token id -1, ids are in [0, 258)"),
    ({"banned_token_ids": [1] * 16385}, "banned_token_ids", "banned_token_ids has 16385 ids, the limit is 16384"),
    ({"banned_token_ids": list(range(258))}, "banned_token_ids", "nothing could be drawn"),
    ({"bad_words": "x"}, "bad_words", "bad_words: "),
    ({"bad_words": [""]}, "bad_words", "bad_words has a string of 0 characters, the range is [1, 256]"),
    ({"bad_words": ["x" * 257]}, "bad_words", "bad_words has a string of 257 characters, the range is [1, 256]"),
    ({"bad_words": ["x"] * 513}, "bad_words", "bad_words has 513 strings, the limit is 512"),
    ({"bad_words": ["\ud800"]}, "bad_words[0]", "is not Unicode text"),
]


@pytest.mark.parametrize(("route", "prompt"), ROUTES, ids=ROUTE_IDS)
async def test_a_bad_value_is_refused_by_name_and_limit(
    session: aiohttp.ClientSession, fleet: GatewayFleet, route: str, prompt: dict[str, Any]
) -> None:
    for body, field, what in BAD:
        for stream in (False, True):
            param, message = await refused(session, route, {**prompt, **body, "stream": stream})
            assert (param, what in message) == (field, True), (body, param, message)
    assert not fleet.compute.submitted
    assert fleet.active == 0


@pytest.mark.parametrize(("route", "prompt"), ROUTES, ids=ROUTE_IDS)
async def test_what_the_tokenizer_refuses_of_words_keeps_its_name(route: str, prompt: dict[str, Any]) -> None:
    class Refusing(FakeTokenizer):
        async def _answer(self, request: tokenizer_pb2.TokenizeRequest, answers: Any) -> None:
            error = common_pb2.Error(code=3, reason="INVALID_ARGUMENT", message="bad_words has 'ab', which is odd", field="bad_words")
            answers.put_nowait(tokenizer_pb2.TokenizeResponse(request=request.request, error=error))

    async with running_fleet(tokenizers=[Refusing()]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        assert await refused(session, route, {**prompt, "bad_words": ["ab"]}) == ("bad_words", "bad_words has 'ab', which is odd")


async def test_grpc_has_the_limits_http_has(stub: Any, fleet: GatewayFleet) -> None:
    long, ids = common_pb2.TokenSequence(token_ids=[1] * 65), [1] * 16385
    cases: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
        ({"typical_p": 0}, {}, "typical_p", "(0, 1]"),
        ({"top_n_sigma": 101}, {}, "top_n_sigma", "(0, 100]"),
        ({"xtc_threshold": 2}, {}, "xtc_threshold", "(0, 1]"),
        ({"dry_allowed_length": 65}, {}, "dry_allowed_length", "[1, 64]"),
        ({"dry_breaker_ids": ids}, {}, "dry_breaker_ids", "16384"),
        ({"dry_breaker_ids": [258]}, {}, "dry_breaker_ids", "[0, 258)"),
        ({"allowed_token_ids": ids}, {}, "allowed_token_ids", "16384"),
        ({"banned_token_ids": ids}, {}, "banned_token_ids", "16384"),
        ({"bad_words": [common_pb2.TokenSequence(token_ids=[1])] * 1025}, {}, "bad_words", "1024"),
        ({"bad_words": [long]}, {}, "bad_words", "64"),
        ({"bad_words": [common_pb2.TokenSequence()]}, {}, "bad_words", "1"),
        ({}, {"bad_words": ["x"] * 513}, "bad_words", "512"),
        ({}, {"bad_words": [""]}, "bad_words", "[1, 256]"),
        ({}, {"dry_sequence_breakers": {"strings": ["x"] * 17}}, "dry_sequence_breakers", "16"),
        ({}, {"dry_sequence_breakers": {"strings": ["x" * 41]}}, "dry_sequence_breakers", "[1, 40]"),
    ]
    for sampling, fields, field, limit in cases:
        message = tokenizer_pb2.ChatMessage(role="user", content="Hello")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Chat(chat_pb2.ChatRequest(messages=[message], sampling=common_pb2.SamplingParams(**sampling), **fields)):
                pass
        error = from_rpc_error(caught.value, peer="gateway")
        assert (type(error), error.field) == (InvalidRequest, field), error
        assert field in error.message and limit in error.message
    assert not fleet.compute.submitted


async def test_ids_of_breakers_that_the_model_has_no_row_for_are_left_out() -> None:
    narrow = FakeCompute(logits_width=60)
    async with running_fleet(computes=[narrow], tokenizers=[FakeTokenizer()]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        await accepted(
            session, COMPLETION, {"prompt": [1], "dry_multiplier": 1, "dry_sequence_breakers": ["0", "a"], "bad_words": ["0", "a"]}
        )
        assert list(fleet.compute.submitted[0].sampling.dry_breaker_ids) == [ord("0")]
        assert fleet.compute.submitted[0].sampling.bad_words == words("0")


async def test_capabilities_tell_the_new_fields_with_their_ranges_and_limits(session: aiohttp.ClientSession) -> None:
    async with session.get("/v1/capabilities") as response:
        said = await response.json()
    for route in (CHAT, COMPLETION):
        assert set(ALL_GIVEN) <= set(said["bodies"][route]["accepted"])
    assert {name: said["ranges"][name] for name in ("typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold")} == {
        "typical_p": "(0, 1]",
        "top_n_sigma": "(0, 100]",
        "xtc_probability": "[0, 1]",
        "xtc_threshold": "(0, 1]",
    }
    assert (said["limits"]["max_listed_token_ids"], said["limits"]["max_bad_words"], said["limits"]["max_dry_sequence_breakers"]) == (
        16384,
        512,
        16,
    )


async def test_the_same_rules_in_other_words_are_one_entry_of_the_cache(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    same = [
        {
            "allowed_token_ids": [66, 65],
            "bad_words": ["a", "b"],
            "dry_multiplier": 1,
            "dry_sequence_breakers": ["x", "y"],
            "xtc_probability": 1,
        },
        {"allowed_token_ids": [65, 66, 66], "bad_words": ["b", "a", "a"], "dry_multiplier": 1, "dry_sequence_breakers": ["y", "x"]},
    ]
    for body, status in zip(same, ("miss", "hit-exact"), strict=True):
        async with session.post(CHAT, json={"messages": HELLO, "temperature": 0, **body}) as response:
            assert (response.status, response.headers["X-Triserve-Cache"]) == (200, status)
    assert len(fleet.compute.submitted) == 1


@pytest.mark.parametrize("more", [{**given, "temperature": 1} for given, _ in PARAMETERS], ids=lambda more: "-".join(more))
async def test_another_value_is_another_entry_of_the_cache(session: aiohttp.ClientSession, more: dict[str, Any]) -> None:
    for body, status in (({}, "miss"), (more, "miss"), (more, "hit-exact")):
        async with session.post(COMPLETION, json={"prompt": [BOS, 97], "temperature": 1, "seed": 3, **body}) as response:
            assert (response.status, response.headers["X-Triserve-Cache"]) == (200, status)
