"""Bad input over HTTP: the right status, the field's name, OpenAI's form, and a server that goes on. Advisories of other servers are named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]
MODEL_LEN = 64


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(max_model_len_tokens=MODEL_LEN)], max_body_bytes=4096) as fleet:
        yield fleet


@pytest.fixture
async def session(fleet: GatewayFleet) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(fleet.url) as session:
        yield session


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("unknown field", CHAT, {"messages": HELLO, "foo": 1}, "foo"),
    ("unknown field that is null", CHAT, {"messages": HELLO, "foo": None}, "foo"),
    ("unknown field of a message", CHAT, {"messages": [{"role": "user", "content": "a", "foo": 1}]}, "messages[0].foo"),
    ("unknown field of stream_options", CHAT, {"messages": HELLO, "stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
    ("tools", CHAT, {"messages": HELLO, "tools": [{}]}, "tools[0].type"),
    ("a call that must be made", CHAT, {"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    ("tool calls", CHAT, {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].id"),
    ("store that is no boolean", CHAT, {"messages": HELLO, "store": "yes"}, "store"),
    ("an effort the template knows nothing of", CHAT, {"messages": HELLO, "reasoning_effort": "low"}, "reasoning_effort"),
    ("a form of no kind", CHAT, {"messages": HELLO, "response_format": {"type": "xml"}}, "response_format.type"),
    ("echo of a chat", CHAT, {"messages": HELLO, "echo": True}, "echo"),
    ("best_of under n", COMPLETION, {"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
    ("best_of over the limit", COMPLETION, {"prompt": "a", "best_of": 17}, "best_of"),
    ("best_of that equals 1 and is no number", COMPLETION, {"prompt": "a", "best_of": True}, "best_of"),
    ("more beams than there may be", CHAT, {"messages": HELLO, "n": 11, "use_beam_search": True}, "n"),
    ("sampling of beams", CHAT, {"messages": HELLO, "n": 2, "use_beam_search": True, "temperature": 0.5}, "temperature"),
    ("stop strings of beams", CHAT, {"messages": HELLO, "n": 2, "use_beam_search": True, "stop": "a"}, "stop"),
    ("a completion's last turn", COMPLETION, {"prompt": "a", "system2_attention": True}, "system2_attention"),
    (
        "a rewritten turn of an assistant",
        CHAT,
        {"messages": [{"role": "assistant", "content": "a"}], "system2_attention": True},
        "system2_attention",
    ),
    ("contrast that no replica can give", CHAT, {"messages": HELLO, "penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    ("contrast of one candidate", CHAT, {"messages": HELLO, "penalty_alpha": 0.6, "top_k": 1}, "top_k"),
    ("a length_penalty of nothing", CHAT, {"messages": HELLO, "length_penalty": 0.5}, "length_penalty"),
    ("early_stopping of nothing", CHAT, {"messages": HELLO, "early_stopping": True}, "early_stopping"),
    ("early_stopping in another word", CHAT, {"messages": HELLO, "use_beam_search": True, "early_stopping": "soon"}, "early_stopping"),
    ("string for a number", CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature"),
    ("boolean for a number", CHAT, {"messages": HELLO, "n": True}, "n"),
    ("fraction for a whole number", CHAT, {"messages": HELLO, "max_tokens": 1.5}, "max_tokens"),
    ("negative temperature", CHAT, {"messages": HELLO, "temperature": -0.1}, "temperature"),
    ("negative top_p", COMPLETION, {"prompt": "a", "top_p": -0.1}, "top_p"),
    ("top_p over 1 where greed makes it moot", COMPLETION, {"prompt": "a", "temperature": 0, "top_p": 1.1}, "top_p"),
    ("top_k below -1", COMPLETION, {"prompt": "a", "top_k": -2}, "top_k"),
    ("min_p over 1", COMPLETION, {"prompt": "a", "min_p": 1.1}, "min_p"),
    ("repetition_penalty of zero", COMPLETION, {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
    ("presence_penalty over 10", COMPLETION, {"prompt": "a", "presence_penalty": 11}, "presence_penalty"),
    ("seed of 65 bits", COMPLETION, {"prompt": "a", "seed": 2**64}, "seed"),
    ("bias for a word", COMPLETION, {"prompt": "a", "logit_bias": {"yes": 1}}, "logit_bias"),
    ("bias for an id twice", COMPLETION, {"prompt": "a", "logit_bias": {"5": 1, "05": 2}}, "logit_bias"),
    ("bias over 100", COMPLETION, {"prompt": "a", "logit_bias": {"5": 101}}, "logit_bias"),
    ("bias for too many", COMPLETION, {"prompt": "a", "logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
    ("likeliest without logprobs", CHAT, {"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    ("too many likeliest", CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("too many likeliest of a completion", COMPLETION, {"prompt": "a", "logprobs": 21}, "logprobs"),
    ("max_tokens of zero", CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ("max_completion_tokens of zero", CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
    ("two limits that differ", CHAT, {"messages": HELLO, "max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ("answer that does not fit", COMPLETION, {"prompt": "a", "max_tokens": MODEL_LEN}, "max_tokens"),
    ("negative min_tokens", COMPLETION, {"prompt": "a", "min_tokens": -1}, "min_tokens"),
    ("too many stops", COMPLETION, {"prompt": "a", "stop": ["x"] * 17}, "stop"),
    ("empty stop", COMPLETION, {"prompt": "a", "stop": ""}, "stop"),
    ("long stop", COMPLETION, {"prompt": "a", "stop": "x" * 257}, "stop"),
    ("stop that is a number", COMPLETION, {"prompt": "a", "stop": 7}, "stop"),
    ("empty messages", CHAT, {"messages": []}, "messages"),
    ("no messages", CHAT, {}, "messages"),
    ("content that is null", CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ("no role", CHAT, {"messages": [{"content": "a"}]}, "messages[0].role"),
    ("too many messages", CHAT, {"messages": [{"role": "u", "content": "a"}] * 9}, "messages"),
    ("part without a type", CHAT, {"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content"),
    ("too long a chat", CHAT, {"messages": [{"role": "user", "content": "a" * 80}]}, "messages"),
    ("too long a prompt", COMPLETION, {"prompt": "a" * 80}, "prompt"),
    ("too many ids", COMPLETION, {"prompt": [1] * MODEL_LEN}, "prompt"),
    ("empty prompt list", COMPLETION, {"prompt": []}, "prompt"),
    ("empty id list", COMPLETION, {"prompt": [[1], []]}, "prompt"),
    ("prompt without tokens", COMPLETION, {"prompt": "", "add_special_tokens": False}, "prompt"),
    ("prompts of two kinds", COMPLETION, {"prompt": ["a", [1]]}, "prompt"),
    ("negative id", COMPLETION, {"prompt": [-1]}, "prompt"),
    ("huge id", COMPLETION, {"prompt": [2**40]}, "prompt"),
    ("no prompt", COMPLETION, {}, "prompt"),
    ("too many prompts", COMPLETION, {"prompt": ["a"] * 9}, "prompt"),
    ("too many answers", COMPLETION, {"prompt": ["a"] * 8, "n": 4}, "n"),
    ("n of zero", CHAT, {"messages": HELLO, "n": 0}, "n"),
    ("priority over 10", CHAT, {"messages": HELLO, "priority": 11}, "priority"),
    ("priority better than normal without a key", COMPLETION, {"prompt": "a", "priority": -1}, "priority"),
    ("priority where no replica serves by it", COMPLETION, {"prompt": "a", "priority": 1}, "priority"),
    ("priority that is a word", COMPLETION, {"prompt": "a", "priority": "high"}, "priority"),
    ("lone surrogate", CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    ("template argument of a wrong type", CHAT, {"messages": HELLO, "chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("route", "body", "field"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_a_bad_field_is_refused_by_name(route: str, body: dict[str, Any], field: str) -> None:
    compute = FakeCompute(max_model_len_tokens=MODEL_LEN)
    async with (
        running_fleet(computes=[compute], max_messages=8, max_prompts=8, max_choices=16, max_logit_bias=300) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        for more in ({}, {"stream": True}):
            async with session.post(route, json={**body, **more}) as response:
                error = (await response.json())["error"]
            assert response.status == 400, error
            assert (error["type"], error["param"]) == ("invalid_request_error", field), error
            assert field in error["message"]
        assert not compute.submitted
        assert fleet.active == 0


async def test_an_unknown_field_is_named_in_the_message(session: aiohttp.ClientSession) -> None:
    async with session.post(CHAT, json={"messages": HELLO, "foo": 1}) as response:
        assert (await response.json())["error"] == {
            "message": "Unknown field: foo",
            "type": "invalid_request_error",
            "param": "foo",
            "code": "invalid_request",
        }


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "object"),
        (b'{"prompt": NaN}', 400, "NaN"),
        (b'{"prompt": "\xff"}', 400, "UTF-8"),
        (b"\xff\xfe{\x00}\x00", 400, "UTF-8"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature is inf"),
        (b'{"prompt": "a", "seed": ' + b"9" * 400 + b"}", 400, "seed is 99999"),
        (b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}", 400, "more than 400 digits"),
        (b'{"prompt": "a", "seed": 1, "seed": 2}', 400, "'seed' twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', 400, "'content' twice"),
        (b'{"prompt": ' + b"[" * 40 + b"]" * 40 + b"}", 400, "nested"),
        (b"[" * 4000, 400, "nested"),
        (b'{"prompt": "' + b"a" * 5000 + b'"}', 413, "4096"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(session: aiohttp.ClientSession, body: bytes, status: int, says: str) -> None:
    async with session.post(COMPLETION, data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == status
        assert says in (await response.json())["error"]["message"]
    async with session.post(COMPLETION, json={"prompt": "a"}) as response:
        assert response.status == 200


async def test_a_large_body_is_refused_before_it_is_read(fleet: GatewayFleet) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", fleet.service.port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9000000000\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    await writer.wait_closed()


async def test_a_chunked_body_is_cut_off_at_the_limit(session: aiohttp.ClientSession) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    async with session.post(COMPLETION, data=endless(), headers={"Content-Type": "application/json"}) as response:
        assert response.status == 413


async def test_a_body_that_does_not_come_is_given_up() -> None:
    async with running_fleet(body_timeout_s=0.05) as fleet:
        reader, writer = await asyncio.open_connection("127.0.0.1", fleet.service.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: fleet.active == 0)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/xml"},
        {"Content-Encoding": "gzip", "Content-Type": "application/json"},
    ],
)
async def test_a_body_of_another_kind_is_415(session: aiohttp.ClientSession, headers: dict[str, str]) -> None:
    async with session.post(COMPLETION, data=b"{}", headers=headers) as response:
        assert response.status == 415
        assert (await response.json())["error"]["code"] == "unsupported_media_type"


async def test_unknown_routes_and_methods_are_in_openais_form(session: aiohttp.ClientSession) -> None:
    async with session.get("/v1/nothing") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "route_not_found"
    async with session.get(CHAT) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "POST"
        assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_an_unknown_model_is_404(session: aiohttp.ClientSession, stream: bool) -> None:
    async with session.post(CHAT, json={"model": "gpt-17", "messages": HELLO, "stream": stream}) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "model_not_found"


async def test_a_chat_for_a_model_without_a_template_is_refused() -> None:
    async with (
        running_fleet(tokenizers=[FakeTokenizer(has_chat_template=False)]) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
        session.post(CHAT, json={"messages": HELLO}) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "messages"


# Advisories of other servers, each with the rule that makes us immune.


@pytest.mark.parametrize("n", [17, 10**9, 10**30])
async def test_cve_2026_34756_an_unbounded_n_is_refused_before_anything_is_made(
    session: aiohttp.ClientSession, fleet: GatewayFleet, n: int
) -> None:
    async with session.post(CHAT, json={"messages": HELLO, "n": n}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "n"
    assert not fleet.tokenizer.asked


@pytest.mark.parametrize("more", [{}, {"max_tokens": 5}])
async def test_cve_2026_114051_min_tokens_is_checked_against_the_resolved_max_tokens(
    session: aiohttp.ClientSession, more: dict[str, int]
) -> None:
    async with session.post(CHAT, json={"messages": HELLO, "min_tokens": MODEL_LEN, **more}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == "min_tokens"
    async with session.post(CHAT, json={"messages": HELLO}) as response:
        assert response.status == 200


@pytest.mark.parametrize("field", ["prompt", "stop_token_ids"])
async def test_cve_2026_93840_ids_are_checked_against_the_logits_width(session: aiohttp.ClientSession, field: str) -> None:
    for token, status in ((257, 200), (258, 400)):
        async with session.post(COMPLETION, json={"prompt": [1], field: [token]}) as response:
            assert response.status == status
    async with session.post(COMPLETION, json={"prompt": [1], "logit_bias": {"258": 1}}) as response:
        assert response.status == 400


async def test_pysec_2026_4198_two_requests_of_one_client_id_are_two_requests(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()

    async def ask(text: str) -> tuple[str, str, str]:
        async with session.post(COMPLETION, json={"prompt": text}, headers={"X-Request-Id": "same"}) as response:
            answer = (await response.json())["choices"][0]["text"]
            return answer, response.headers["X-Request-Id"], response.headers["X-Client-Request-Id"]

    tasks = [asyncio.create_task(ask(text)) for text in ("one", "two")]
    await eventually(lambda: len(fleet.compute.submitted) == 2)
    fleet.compute.flowing.set()
    (one, first, label), (two, second, _) = await asyncio.gather(*tasks)
    assert (one, two, label) == ("one", "two", "same")
    assert first != second
    ids = {request.request_id for request in fleet.compute.submitted}
    assert ids == {f"cmpl-{first}", f"cmpl-{second}"}


@pytest.mark.parametrize("label", ["http://169.254.169.254/", "a b", "x" * 129, "é"])
async def test_cve_2026_116176_a_request_id_that_is_no_plain_label_is_dropped(session: aiohttp.ClientSession, label: str) -> None:
    async with session.post(COMPLETION, json={"prompt": "a"}, headers={"X-Request-Id": label}) as response:
        assert response.status == 200
        assert "X-Client-Request-Id" not in response.headers


async def test_cve_2026_24779_no_url_of_a_client_is_ever_fetched(session: aiohttp.ClientSession) -> None:
    asked = []

    async def visit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(visit, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url}},
        {"type": "file", "file": {"file_id": url}},
    ]
    for part in parts:
        async with session.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]}) as response:
            assert response.status == 400
            assert part["type"] in (await response.json())["error"]["message"]
    server.close()
    await server.wait_closed()
    assert asked == []


async def test_pages_of_other_sites_cannot_make_a_browser_post_here(session: aiohttp.ClientSession, fleet: GatewayFleet) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        async with session.post(
            COMPLETION, data=b'{"prompt": "a"}', headers={"Content-Type": "text/plain", "Sec-Fetch-Site": site}
        ) as response:
            assert response.status == status
    assert len(fleet.compute.submitted) == 2


async def test_no_prompt_is_ever_logged(session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for body in ({"prompt": "confidential"}, {"prompt": "confidential", "max_tokens": 0}, {"prompt": "confidential", "stream": True}):
        async with session.post(COMPLETION, json=body) as response:
            await response.read()
    assert "prompt tokens" in caplog.text
    assert "confidential" not in caplog.text


async def test_tokenize_and_detokenize_are_inverse(session: aiohttp.ClientSession) -> None:
    async with session.post("/tokenize", json={"prompt": "héllo", "add_special_tokens": False, "return_token_strs": True}) as response:
        body = await response.json()
    assert body["tokens"] == list("héllo".encode())
    assert (body["count"], body["max_model_len"]) == (6, MODEL_LEN)
    assert body["token_strs"][0] == "<104>"
    async with session.post("/detokenize", json={"tokens": body["tokens"]}) as response:
        assert await response.json() == {"prompt": "héllo"}
    async with session.post("/tokenize", json={"messages": HELLO}) as response:
        assert (await response.json())["count"] == len("user: Hello\nassistant: ")


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"messages": HELLO, "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"prompt": "a", "model": "gpt-17"}, "model"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [9999]}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
    ],
)
async def test_bad_tokenizing_is_refused_by_name(session: aiohttp.ClientSession, route: str, body: dict[str, Any], field: str) -> None:
    async with session.post(route, json=body) as response:
        error = (await response.json())["error"]
    assert response.status in (400, 404)
    assert error["param"] == field


async def test_tokenizing_many_tokens_gives_each_in_order() -> None:
    async with running_fleet(computes=[FakeCompute(max_model_len_tokens=MODEL_LEN)]) as large, aiohttp.ClientSession(large.url) as session:
        text = "".join(chr(97 + number % 26) for number in range(20_000))
        async with session.post("/tokenize", json={"prompt": text, "add_special_tokens": False, "return_token_strs": True}) as response:
            body = await response.json()
        assert body["tokens"] == list(text.encode())
        assert (body["count"], body["system_tokens"]) == (20_000, 0)
        assert body["token_strs"] == [f"<{token}>" for token in text.encode()]
        async with session.post("/detokenize", json={"tokens": body["tokens"]}) as response:
            assert await response.json() == {"prompt": text}
