"""What clients of other servers send and expect, over HTTP: allowed where it asks for nothing, refused by name where it would change the answer."""

from __future__ import annotations

from typing import Any

import aiohttp

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import running_fleet
from triserve.v1 import common_pb2

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
