"""Bad input gets the right 4xx with the field's name, and the server goes on as if nothing had been."""

from __future__ import annotations

import io
import json
from typing import Any

import aiohttp
import pytest

from tests.e2e.local_pipeline import Pipeline

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Hello"}]

CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("prompt too long", COMPLETION, {"prompt": [300] * 5000}, "prompt"),
    ("chat too long", CHAT, {"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
    ("prompt and answer too long", COMPLETION, {"prompt": [300] * 10, "max_tokens": 1_000_000}, "max_tokens"),
    ("unknown field", CHAT, {"messages": HELLO, "frobnicate": True}, "frobnicate"),
    ("wrong type", CHAT, {"messages": HELLO, "temperature": "hot"}, "temperature"),
    ("not a number", CHAT, {"messages": HELLO, "top_p": None, "temperature": [1]}, "temperature"),
    ("prompt id out of range", COMPLETION, {"prompt": [4_000_000]}, "prompt"),
    ("negative prompt id", COMPLETION, {"prompt": [-1]}, "prompt"),
    ("stop id out of range", COMPLETION, {"prompt": "a", "stop_token_ids": [4_000_000]}, "stop_token_ids"),
    ("biased id out of range", COMPLETION, {"prompt": "a", "logit_bias": {"4000000": 1}}, "logit_bias"),
    ("empty messages", CHAT, {"messages": []}, "messages"),
    ("missing messages", CHAT, {}, "messages"),
    ("empty prompt list", COMPLETION, {"prompt": []}, "prompt"),
    ("huge n", CHAT, {"messages": HELLO, "n": 1_000_000_000}, "n"),
    ("n of zero", CHAT, {"messages": HELLO, "n": 0}, "n"),
    ("min over max", COMPLETION, {"prompt": "a", "min_tokens": 20, "max_tokens": 10}, "min_tokens"),
    ("min over what fits", CHAT, {"messages": HELLO, "min_tokens": 1_000_000}, "min_tokens"),
    ("top_k below one", COMPLETION, {"prompt": "a", "top_k": -7}, "top_k"),
    (
        "image part",
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
        "messages",
    ),
    ("client template", CHAT, {"messages": HELLO, "chat_template": "{{ 1 }}"}, "chat_template"),
    ("tools", CHAT, {"messages": HELLO, "tools": [{"type": "function"}]}, "tools"),
    ("lone surrogate", CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
]


async def _is_alive(session: aiohttp.ClientSession, pipeline: Pipeline) -> bool:
    async with session.post(f"{pipeline.url}{COMPLETION}", json={"prompt": "a", "max_tokens": 2}) as response:
        return response.status == 200 and len((await response.json())["choices"]) == 1


@pytest.mark.parametrize(("route", "body", "field"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_a_bad_field_is_refused_by_name(pipeline: Pipeline, route: str, body: dict[str, Any], field: str) -> None:
    async with aiohttp.ClientSession() as session:
        for stream in (False, True):
            async with session.post(f"{pipeline.url}{route}", data=json.dumps({**body, "stream": stream})) as response:
                error = (await response.json())["error"]
            assert response.status == 400, error
            assert error["type"] == "invalid_request_error"
            assert str(error["param"]).startswith(field), error
        assert await _is_alive(session, pipeline)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[]", 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "' + b"a" * 9_000_000 + b'"}', 413),
    ],
    ids=["cut short", "empty", "not an object", "invalid UTF-8", "deep", "too large"],
)
async def test_a_body_that_is_no_request_is_refused(pipeline: Pipeline, body: bytes, status: int) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.post(
            f"{pipeline.url}{COMPLETION}", data=io.BytesIO(body), headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == status
            assert (await response.json())["error"]["message"]
        assert await _is_alive(session, pipeline)


async def test_an_unknown_model_and_route_are_404_in_openai_form(pipeline: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{pipeline.url}{CHAT}", json={"model": "gpt-17", "messages": HELLO}) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "model_not_found"
        async with session.get(f"{pipeline.url}/v1/nothing") as response:
            assert response.status == 404
            assert (await response.json())["error"]["type"]


async def test_special_tokens_in_user_text_stay_text(pipeline: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        for text in ("<|end|>", "<|user|>", "<|assistant|>"):
            async with session.post(f"{pipeline.url}/tokenize", json={"prompt": text, "add_special_tokens": False}) as response:
                tokens = (await response.json())["tokens"]
            assert len(tokens) > 1, text
            async with session.post(f"{pipeline.url}/detokenize", json={"tokens": tokens}) as response:
                assert (await response.json())["prompt"] == text
