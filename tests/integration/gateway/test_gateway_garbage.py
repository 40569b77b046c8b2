"""What a request leaves in the gateway is freed when it ends, and waits for no garbage collector."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(hidden_size=3)]) as fleet:
        yield fleet


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/chat/completions", {**CHAT, "n": 2, "logprobs": True}),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "stream": True}),
        ("/v1/responses", {"model": "tiny", "input": "Hello", "stream": True}),
        ("/v1/messages", {"model": "tiny", "max_tokens": 9, "messages": CHAT["messages"], "stream": True}),
        ("/v1/chat/completions", {**CHAT, "n": 1, "best_of": 3}),
        ("/v1/chat/completions", {**CHAT, "n": 2, "use_beam_search": True, "max_tokens": 3}),
        ("/v1/chat/completions", {**CHAT, "system2_attention": True, "stream": True}),
        ("/v1/embeddings", {"model": "tiny", "input": ["a", "b"]}),
        ("/v1/chat/completions", {**CHAT, "n": 999}),
    ],
)
async def test_a_request_leaves_no_cycles(fleet: GatewayFleet, path: str, body: dict[str, Any]) -> None:
    async with aiohttp.ClientSession(fleet.url) as session:

        async def ask() -> None:
            async with session.post(path, json=body) as response:
                assert response.status == (400 if body.get("n") == 999 else 200), await response.text()
                await response.read()

        await ask()
        await eventually(lambda: fleet.active == 0)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                await ask()
            await eventually(lambda: fleet.active == 0)
            gc.collect()
            left = Counter(type(one).__qualname__ for one in gc.garbage if type(one).__module__.split(".")[0] in ("gateway", "triserve"))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left, left
