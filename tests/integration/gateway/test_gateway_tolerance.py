"""What clients of other servers send and expect, over HTTP: allowed where it asks for nothing, refused by name where it would change the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from triserve.v1 import common_pb2, tokenizer_pb2

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO: Any = [{"role": "user", "content": "Hello"}]


async def test_an_id_without_a_token_is_taken_wherever_it_may_have_been_given_out() -> None:
    beyond = 299
    wide = FakeCompute(script=lambda request: [Say("", [beyond]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)], logits_width=300)
    async with running_fleet(computes=[wide]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        async with session.post(COMPLETION, json={"prompt": "a", "return_token_ids": True}) as response:
            given = (await response.json())["choices"][0]["token_ids"]
        assert given == [beyond, EOS]
        async with session.post("/detokenize", json={"tokens": given}) as response:
            assert (response.status, await response.json()) == (200, {"prompt": ""})
        async with session.post(COMPLETION, json={"prompt": given, "stop_token_ids": given, "logit_bias": {str(beyond): -1}}) as response:
            assert response.status == 200
        for route, body in (
            ("/detokenize", {"tokens": [300]}),
            (COMPLETION, {"prompt": [300]}),
            (COMPLETION, {"prompt": "a", "stop_token_ids": [300]}),
        ):
            async with session.post(route, json=body) as response:
                assert response.status == 400
                assert "ids are in [0, 300)" in (await response.json())["error"]["message"]


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(max_model_len_tokens=64)]) as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


async def posted(session: aiohttp.ClientSession, route: str, body: dict[str, Any], **options: Any) -> tuple[int, Any]:
    async with session.post(route, json=body, **options) as response:
        return response.status, await response.json()


async def events_of(session: aiohttp.ClientSession, route: str, body: dict[str, Any]) -> list[Any]:
    async with session.post(route, json={**body, "stream": True}) as response:
        lines = (await response.read()).decode().split("\n\n")
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "a" * 80}]}, "messages"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 60}, "max_completion_tokens"),
        (COMPLETION, {"prompt": [97] * 64}, "prompt"),
        (COMPLETION, {"prompt": "a", "max_tokens": 64}, "max_tokens"),
    ],
)
async def test_a_prompt_that_is_too_long_is_refused_in_the_words_by_which_clients_know_it(
    session: aiohttp.ClientSession, route: str, body: dict[str, Any], field: str
) -> None:
    status, answer = await posted(session, route, body)
    error = answer["error"]
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", field)
    assert error["message"].startswith("This model's maximum context length is 64 tokens. However, ")


async def test_every_answer_has_the_fingerprint_of_what_made_it(session: aiohttp.ClientSession) -> None:
    found = set()
    for route, body in ((CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "a"})):
        for _ in ("made", "kept"):
            found.add((await posted(session, route, {**body, "temperature": 0}))[1]["system_fingerprint"])
        found |= {
            event["system_fingerprint"] for event in await events_of(session, route, {**body, "stream_options": {"include_usage": True}})
        }
    assert len(found) == 1
    assert found.pop().startswith("fp_")


async def test_the_ids_of_the_prompt_come_back_where_asked_for(session: aiohttp.ClientSession) -> None:
    asked = {"return_token_ids": True, "temperature": 0}
    for cache in ("miss", "hit-exact"):
        async with session.post(COMPLETION, json={"prompt": [97, 98], **asked}) as response:
            assert response.headers["X-Triserve-Cache"] == cache
            assert (await response.json())["choices"][0]["prompt_token_ids"] == [97, 98]
    _, chat = await posted(session, CHAT, {"messages": HELLO, **asked})
    ids = chat["prompt_token_ids"]
    assert bytes(ids) == b"user: Hello\nassistant: "
    unasked = (await posted(session, CHAT, {"messages": HELLO}))[1]
    assert unasked["prompt_token_ids"] is unasked["prompt_logprobs"] is None
    choice = (await posted(session, COMPLETION, {"prompt": "a"}))[1]["choices"][0]
    assert choice["prompt_token_ids"] is choice["token_ids"] is choice["prompt_logprobs"] is None
    first, *others = await events_of(session, CHAT, {"messages": HELLO, **asked})
    assert first["prompt_token_ids"] == ids and not any("prompt_token_ids" in event for event in others)
    first, *others = await events_of(session, COMPLETION, {"prompt": [[97], [98]], **asked})
    prompts = {
        event["choices"][0]["index"]: event["choices"][0]["prompt_token_ids"]
        for event in [first, *others]
        if "prompt_token_ids" in event["choices"][0]
    }
    assert prompts == {0: [97], 1: [98]}


async def test_continuous_usage_comes_with_the_usage_alone_and_counts_what_was_sent(session: aiohttp.ClientSession) -> None:
    options = {"continuous_usage_stats": True}
    assert not any("usage" in event for event in await events_of(session, CHAT, {"messages": HELLO, "stream_options": options}))
    counted = await events_of(session, CHAT, {"messages": HELLO, "max_tokens": 3, "stream_options": {**options, "include_usage": True}})
    counts = [event["usage"]["completion_tokens"] for event in counted]
    assert (counts[0], counts[-1]) == (0, 3)
    assert counts == sorted(counts)


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/models", "/v1/models/", "/models/tiny", "/v1/models/tiny/", "/health", "/v1/health/", "/version", "/v1/capabilities/"],
)
async def test_paths_are_found_with_and_without_version_and_slash(session: aiohttp.ClientSession, path: str) -> None:
    async with session.get(path) as response:
        assert response.status == 200
    async with session.head(path) as response:
        assert (response.status, await response.read()) == (200, b"")


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/v1/chat/completions/", "/completions", "/completions/", "/v1/tokenize", "/tokenize/"]
)
async def test_posts_are_found_with_and_without_version_and_slash(session: aiohttp.ClientSession, path: str) -> None:
    body = {"prompt": "a"} if "chat" not in path else {"messages": HELLO}
    assert (await posted(session, path, body))[0] == 200


@pytest.mark.parametrize(("path", "allowed"), [(CHAT, "POST"), ("/v1/models", "GET"), ("/detokenize", "POST")])
async def test_a_method_a_path_does_not_take_is_told_those_it_does(session: aiohttp.ClientSession, path: str, allowed: str) -> None:
    async with session.request("PUT", path) as response:
        assert (response.status, allowed in response.headers["Allow"]) == (405, True)
        assert (await response.json())["error"]["code"] == "method_not_allowed"
    async with session.options(path) as response:
        assert response.status == 204
        assert {allowed, "OPTIONS"} <= set(response.headers["Allow"].split(", "))
        assert "Access-Control-Allow-Origin" not in response.headers
    async with session.options("/v1/nothing") as response:
        assert response.status == 404


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


async def test_pages_of_sites_the_operator_names_may_call_and_no_others(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {hashlib.sha256(b'secret').hexdigest()}\n")
    async with (
        running_fleet(cors_origins="https://app.example,http://localhost:3000", api_keys_file=keys) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        async with session.options(CHAT, headers={"Origin": "https://app.example", **PREFLIGHT}) as response:
            assert response.status == 204, "browsers ask without a key"
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
            assert response.headers["Access-Control-Allow-Headers"] == "authorization,x-stainless-os"
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
        async with session.options(CHAT, headers={"Origin": "https://evil.example", **PREFLIGHT}) as response:
            assert not [name for name in response.headers if name.startswith("Access-Control")]
        for origin, status in (("https://app.example", 200), ("http://localhost:3000", 200), ("https://evil.example", 403)):
            headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", "X-Api-Key": "secret"}
            for stream in (False, True):
                async with session.post(CHAT, json={"messages": HELLO, "stream": stream}, headers=headers) as response:
                    assert response.status == status
                    assert response.headers.get("Access-Control-Allow-Origin") == (origin if status == 200 else None)
                    assert response.headers["Vary"] == "Origin"
        async with session.post(CHAT, json={"messages": HELLO}, headers={"Origin": "https://app.example"}) as response:
            assert response.status == 401
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example", "or the page could not read why"


async def test_a_key_may_come_in_a_header_of_its_own(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {hashlib.sha256(b'secret').hexdigest()}\n")
    async with running_fleet(api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for headers, status in (({"X-Api-Key": "secret"}, 200), ({"X-Api-Key": "wrong"}, 401), ({}, 401)):
            async with session.get("/version", headers=headers) as response:
                assert response.status == status
        assert (await posted(session, COMPLETION, {"prompt": "a"}, headers={"X-Api-Key": "secret"}))[0] == 200
        assert fleet.compute.submitted[0].tenant == "acme"


async def test_an_effort_of_reasoning_reaches_a_template_that_reads_it() -> None:
    tokenizer = FakeTokenizer(template_arguments=["reasoning_effort"])
    async with running_fleet(tokenizers=[tokenizer]) as fleet, aiohttp.ClientSession(fleet.url) as session:
        assert (await posted(session, CHAT, {"messages": HELLO, "reasoning_effort": "low"}))[0] == 200
        (argument,) = tokenizer.asked[0].encode.chat.template_arguments
        assert (argument.name, argument.string_value) == ("reasoning_effort", "low")


async def test_capabilities_say_what_every_field_comes_to(session: aiohttp.ClientSession) -> None:
    async with session.get("/v1/capabilities") as response:
        said = await response.json()
    chat = said["bodies"][CHAT]
    assert {"messages", "temperature", "max_completion_tokens"} <= set(chat["accepted"])
    assert not {*chat["accepted"]} & {*chat["without_effect"], *chat["refused"]}
    assert said["limits"]["max_model_len"] == 64
    assert said["ranges"]["min_p"] == "[0, 1]"
    assert said["features"]["tools"] is False
    for name, values in chat["refused"].items():
        for value in values:
            assert (await posted(session, CHAT, {"messages": HELLO, name: value}))[0] == 200, name
        status, answer = await posted(session, CHAT, {"messages": HELLO, name: {"asks": "for something"}})
        assert (status, answer["error"]["param"]) == (400, name)
    for name in (*chat["accepted"], *chat["without_effect"]):
        status, answer = await posted(session, CHAT, {"messages": HELLO, name: {"of": [{"another": "type"}]}})
        assert status == 200 or answer["error"]["message"] != f"Unknown field: {name}"


async def test_of_a_prompt_the_last_ids_are_answered_where_no_more_are_wanted(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    ids = {"return_token_ids": True, "max_tokens": 4}
    for prompt in ("abcdef", [*b"abcdef"]):
        status, answer = await posted(session, COMPLETION, {"prompt": prompt, "truncate_prompt_tokens": 2, **ids})
        assert (status, answer["choices"][0]["prompt_token_ids"], answer["usage"]["prompt_tokens"]) == (200, [*b"ef"], 2)
    system = [{"role": "system", "content": "Be brief"}, *HELLO]
    for truncate, kept in ((5, 0), (60, len("system: Be brief\n"))):
        status, answer = await posted(session, CHAT, {"messages": system, "truncate_prompt_tokens": truncate, "max_tokens": 1})
        assert (status, fleet.compute.submitted[-1].system_tokens) == (200, kept)
    status, answer = await posted(session, COMPLETION, {"prompt": "x" * 500, "truncate_prompt_tokens": -1, **ids})
    assert (status, answer["usage"]["prompt_tokens"]) == (200, 60)
    status, answer = await posted(session, COMPLETION, {"prompt": "x" * 500, "truncate_prompt_tokens": 64})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, answer = await posted(session, COMPLETION, {"prompt": "x", "truncate_prompt_tokens": 0})
    assert (status, answer["error"]["param"]) == (400, "truncate_prompt_tokens")


async def test_an_assistant_s_turn_is_continued_and_a_header_left_out(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "It is "}]
    for fields, prompt in (
        ({"continue_final_message": True, "add_generation_prompt": False}, "user: Hello\nassistant: It is "),
        ({"add_generation_prompt": False}, "user: Hello\nassistant: It is \n"),
        ({}, "user: Hello\nassistant: It is \nassistant: "),
    ):
        status, _ = await posted(session, CHAT, {"messages": begun, "max_tokens": 1, **fields})
        assert (status, bytes(fleet.compute.submitted[-1].token_ids).decode()) == (200, prompt)
        status, answer = await posted(session, "/tokenize", {"messages": begun, **fields})
        assert (status, bytes(answer["tokens"]).decode()) == (200, prompt)


@pytest.mark.parametrize(
    ("field", "idle", "wanted"),
    [
        ("vllm_xargs", {}, {"a": 1}),
        ("mm_processor_kwargs", {}, {"a": 1}),
        ("include_reasoning", True, False),
        ("detokenize", True, False),
        ("truncation_side", "left", "right"),
        ("request_id", None, "mine"),
        ("kv_transfer_params", None, {}),
        ("thinking_token_budget", None, 5),
    ],
)
@pytest.mark.parametrize(("route", "body"), [(CHAT, {"messages": HELLO}), (COMPLETION, {"prompt": "a"})], ids=["chat", "completion"])
async def test_vllm_s_fields_are_taken_where_they_ask_for_nothing(
    session: aiohttp.ClientSession, route: str, body: dict[str, Any], field: str, idle: Any, wanted: Any
) -> None:
    for value in (None, idle):
        assert (await posted(session, route, {**body, field: value}))[0] == 200
    status, answer = await posted(session, route, {**body, field: wanted})
    assert (status, answer["error"]["param"]) == (400, field)


async def test_fields_that_only_the_other_of_chats_and_completions_has_are_taken_where_they_ask_for_nothing(
    session: aiohttp.ClientSession,
) -> None:
    unset = dict.fromkeys(("max_completion_tokens", "reasoning_effort", "top_logprobs"))
    assert (await posted(session, COMPLETION, {"prompt": "a", "chat_template_kwargs": {}, **unset}))[0] == 200
    assert (await posted(session, CHAT, {"messages": HELLO, "echo": False}))[0] == 200
    status, answer = await posted(session, CHAT, {"messages": HELLO, "echo": True})
    assert (status, answer["error"]["param"]) == (400, "echo")


async def test_health_is_found_as_ping_too(session: aiohttp.ClientSession) -> None:
    async with session.post("/ping") as posted_, session.get("/ping") as got:
        assert (posted_.status, got.status) == (200, 200)


async def test_what_is_text_of_an_answer_reaches_the_sampler(fleet: GatewayFleet, session: aiohttp.ClientSession) -> None:
    asked = {"include_stop_str_in_output": True, "skip_special_tokens": False, "spaces_between_special_tokens": False, "stop": "x"}
    assert (await posted(session, CHAT, {"messages": HELLO, **asked}))[0] == 200
    stopping = fleet.compute.submitted[-1].stopping
    assert stopping.include_stop_string and stopping.HasField("skip_special_tokens") and not stopping.skip_special_tokens
    assert stopping.HasField("spaces_between_special_tokens") and not stopping.spaces_between_special_tokens


async def test_the_tokenizer_is_told_as_its_own_configuration_tells_it(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"acme {hashlib.sha256(b'secret').hexdigest()}\n")
    tokenizer = FakeTokenizer(
        chat_template="{{ messages }}",
        tokenizer_class="LlamaTokenizer",
        special_tokens=[tokenizer_pb2.NamedToken(name="bos_token", content="<s>")],
        additional_special_tokens=["<x>"],
    )
    async with running_fleet(tokenizers=[tokenizer], api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        async with session.get("/tokenizer_info") as response:
            assert response.status == 401
        async with session.get("/v1/tokenizer_info", headers={"X-Api-Key": "secret"}) as response:
            said = await response.json()
    assert said == {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "additional_special_tokens": ["<x>"],
        "chat_template": "{{ messages }}",
        "model_max_length": 4096,
        "vocab_size": 258,
        "eos_token_ids": [EOS],
        "template_arguments": [],
        "tokenizer_sha256": "ab" * 32,
    }
