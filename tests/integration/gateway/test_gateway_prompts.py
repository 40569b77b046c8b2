"""What is asked of prompts over HTTP and gRPC, against stages that are fakes over real gRPC: echoes, log-probabilities, embeddings."""

from __future__ import annotations

import base64
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.fake_compute import FakeCompute, Say, echo
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import ServiceError, Unavailable
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, compute_pb2, tokenizer_pb2

HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet(computes=[FakeCompute(hidden_size=3), FakeCompute(hidden_size=3)]) as fleet:
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


def submitted(fleet: GatewayFleet) -> list[compute_pb2.SubmitRequest]:
    return [request for compute in fleet.computes for request in compute.submitted]


async def post(fleet: GatewayFleet, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession(fleet.url) as session, session.post(path, json=body) as response:
        return response.status, await response.json()


async def test_an_echo_of_no_tokens_measures_a_prompt_of_ids(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.completions.create(model="tiny", prompt=[72, 105, 33], max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("Hi!", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["H", "i", "!"] and choice.logprobs.text_offset == [0, 1, 2]
    assert choice.logprobs.token_logprobs == [None, -0.5, -0.5]
    assert choice.logprobs.top_logprobs == [None, {"i": -0.5}, {"!": -0.5}]
    assert answer.usage is not None and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 0)
    (request,) = submitted(fleet)
    assert (request.stopping.max_tokens, request.sampling.prompt_logprobs, request.sampling.top_logprobs) == (0, 1, 1)


async def test_a_text_is_echoed_as_it_came_and_asks_nothing_of_the_model(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.completions.create(model="tiny", prompt=["Hi", "Ho"], max_tokens=2, echo=True, n=2)
    assert [choice.text[:2] for choice in answer.choices] == ["Hi", "Hi", "Ho", "Ho"]
    assert all(len(choice.text) > 2 for choice in answer.choices)
    assert not any(request.sampling.HasField("prompt_logprobs") for request in submitted(fleet))


async def test_of_a_prompt_that_is_cut_what_is_left_is_echoed(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "Hello", "max_tokens": 0, "echo": True, "extra_body": {"truncate_prompt_tokens": 3}}
    assert (await client.completions.create(**asked)).choices[0].text == "llo"
    (choice,) = (await client.completions.create(**asked, logprobs=0)).choices
    assert choice.logprobs is not None
    assert (choice.text, choice.logprobs.tokens, choice.logprobs.text_offset) == ("llo", ["l", "l", "o"], [0, 1, 2])


async def test_a_streamed_echo_is_the_whole_one(client: AsyncOpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": [72, 105], "max_tokens": 3, "echo": True, "logprobs": 0, "temperature": 0}
    whole = (await client.completions.create(**asked)).choices[0]
    chunks = [chunk.choices[0] async for chunk in await client.completions.create(**asked, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text and whole.logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [getattr(chunk.logprobs, name) for chunk in chunks if chunk.logprobs is not None]
        assert [one for part in parts for one in part] == getattr(whole.logprobs, name)


async def test_log_probabilities_of_a_prompt_come_by_id(fleet: GatewayFleet) -> None:
    told = {"105": {"logprob": -0.5, "rank": 1, "decoded_token": "i"}, "106": {"logprob": -1.5, "rank": 2, "decoded_token": "j"}}
    status, body = await post(fleet, "/v1/completions", prompt=[72, 105], max_tokens=0, prompt_logprobs=2)
    assert status == 200 and body["choices"][0]["prompt_logprobs"] == [None, told]
    status, body = await post(fleet, "/v1/chat/completions", messages=HELLO, max_tokens=0, prompt_logprobs=0)
    assert status == 200 and body["choices"][0]["message"]["content"] == ""
    assert body["prompt_logprobs"][0] is None and len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"prompt_logprobs": 21}, "prompt_logprobs"),
        ("/v1/chat/completions", {"prompt_logprobs": -1}, "prompt_logprobs"),
        ("/v1/chat/completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("/v1/chat/completions", {"logprob_token_ids": [1]}, "logprob_token_ids"),
        ("/v1/chat/completions", {"logprobs": True, "logprob_token_ids": [1 << 20]}, "logprob_token_ids"),
        ("/v1/chat/completions", {"logprobs": True, "logprob_token_ids": list(range(129))}, "logprob_token_ids"),
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 21}, "logprobs"),
        ("/v1/completions", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
async def test_what_cannot_be_told_is_refused_by_name(fleet: GatewayFleet, path: str, fields: dict[str, Any], named: str) -> None:
    status, body = await post(fleet, path, **({"messages": HELLO} if "chat" in path else {}), **fields)
    assert (status, body["error"]["param"]) == (400, named)
    assert not submitted(fleet)


async def test_more_than_can_be_told_of_prompts_is_refused_before_it_is_made() -> None:
    async with running_fleet(max_prompt_logprobs=1024) as fleet:
        asked: dict[str, Any] = {"prompt": [[72] * 64, [72] * 64], "n": 2, "max_tokens": 0}
        status, body = await post(fleet, "/v1/completions", **asked, prompt_logprobs=3)
        assert status == 200 and [len(choice["prompt_logprobs"]) for choice in body["choices"]] == [64] * 4
        for fields, named in (({"prompt_logprobs": 4}, "prompt_logprobs"), ({"echo": True, "logprobs": 4}, "logprobs")):
            status, body = await post(fleet, "/v1/completions", **asked, **fields)
            assert (status, body["error"]["param"]) == (400, named) and "the limit is 1024" in body["error"]["message"]
        assert len(submitted(fleet)) == 4


async def test_ids_are_named_and_tokens_written_as_ids_where_that_is_asked_for(fleet: GatewayFleet) -> None:
    fields: Any = {"max_tokens": 1, "logprob_token_ids": [7, 9, 7], "return_tokens_as_token_ids": True}
    _, body = await post(fleet, "/v1/completions", prompt=[72], logprobs=1, **fields)
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"token_id:72": -0.5, "token_id:7": -7.0, "token_id:9": -9.0}]
    _, body = await post(fleet, "/v1/chat/completions", messages=HELLO, logprobs=True, top_logprobs=0, **fields)
    (told,) = body["choices"][0]["logprobs"]["content"]
    assert [top["token"] for top in told["top_logprobs"]] == ["token_id:117", "token_id:7", "token_id:9"]


async def test_what_was_told_of_a_prompt_is_told_again_by_another_replica(fleet: GatewayFleet) -> None:
    def fails_first(request: compute_pb2.SubmitRequest) -> list[Say | ServiceError]:
        return [Say("H", [72]), Unavailable("lost")] if not request.epoch else [*echo(request)]

    for compute in fleet.computes:
        compute.script = fails_first
    status, body = await post(fleet, "/v1/completions", prompt=[72, 105], max_tokens=2, prompt_logprobs=0)
    assert status == 200 and len(body["choices"][0]["prompt_logprobs"]) == 2
    assert [len(request.generated_token_ids) for request in submitted(fleet)] == [0, 0], "held back log-probabilities are made again"


async def test_the_prompt_cache_neither_answers_nor_keeps_what_is_told_of_prompts(fleet: GatewayFleet) -> None:
    for fields in ({"prompt_logprobs": 0}, {"max_tokens": 0}, {"echo": True, "logprobs": 0}):
        for _ in range(2):
            status, _ = await post(fleet, "/v1/completions", prompt=[72, 105], temperature=0, **{"max_tokens": 1, **fields})
            assert status == 200
    assert len(submitted(fleet)) == 6


async def test_each_input_has_an_embedding_and_they_are_spread_over_the_replicas(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    inputs = [[65] * length for length in (1, 2, 3, 4)]
    answer = await client.embeddings.create(model="tiny", input=inputs, encoding_format="float")
    for index, one in enumerate(answer.data):
        # The fake says the kind of what is asked, and the number of ids.
        kind, count = float(compute_pb2.HIDDEN_STATES_MEAN), float(index + 1)
        length = (kind * kind + count * count) ** 0.5
        assert one.index == index and one.embedding == pytest.approx([kind / length, count / length, 0], rel=1e-6)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (10, 10)
    assert all(len(compute.submitted) == 2 for compute in fleet.computes)
    assert all(request.stopping.max_tokens == 0 for request in submitted(fleet))


async def test_an_embedding_may_be_as_long_as_it_is_and_come_as_bytes(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    status, body = await post(fleet, "/embeddings", input=[65, 66], pooling="last", normalize=False, encoding_format="base64")
    assert status == 200
    assert struct.unpack("<3f", base64.b64decode(body["data"][0]["embedding"])) == (compute_pb2.HIDDEN_STATES_LAST, 2.0, 0.0)
    # The client asks for bytes by itself.
    assert len((await client.embeddings.create(model="tiny", input="Hi", dimensions=3)).data[0].embedding) == 3


async def test_embeddings_that_cannot_be_are_refused(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    for fields, named in (({"dimensions": 4}, "dimensions"), ({"input": []}, "input"), ({"input": [[1], []]}, "input")):
        status, body = await post(fleet, "/v1/embeddings", **{"input": "Hi", **fields})
        assert (status, body["error"]["param"]) == (400, named)
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="another", input="Hi")
    async with running_fleet() as without:
        status, body = await post(without, "/v1/embeddings", input="Hi")
        assert (status, body["error"]["param"]) == (400, "model")


async def test_an_embedding_that_never_came_is_an_error(fleet: GatewayFleet) -> None:
    for compute in fleet.computes:
        compute.vector = lambda request: b""  # type: ignore[method-assign]  # a replica that keeps to no contract
    status, body = await post(fleet, "/v1/embeddings", input="Hi")
    assert status == 500 and "Hi" not in body["error"]["message"]


async def test_a_grpc_client_is_told_of_its_prompt_in_the_first_message(fleet: GatewayFleet) -> None:
    sampling = common_pb2.SamplingParams(temperature=0, prompt_logprobs=1, top_logprobs=0, logprob_token_ids=[7])
    request = chat_pb2.ChatRequest(
        messages=[tokenizer_pb2.ChatMessage(role="user", content="Hi")],
        sampling=sampling,
        stopping=common_pb2.StoppingParams(max_tokens=2),
    )
    async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        first, *others = [response async for response in stub.Chat(request)]
        assert [list(one.named_logprobs) for one in first.logprobs] == [[-7.0]]
        assert len(first.prompt_logprobs) == others[-1].usage.prompt_tokens - 1 and not any(one.prompt_logprobs for one in others)
        told = first.prompt_logprobs[0]
        assert (told.logprob, told.rank, list(told.top_token_ids)) == (-0.5, 1, [told.token_id])
        request.stopping.max_tokens = 0
        (only,) = [response async for response in stub.Chat(request)]
        assert only.finish_reason == common_pb2.FINISH_REASON_LENGTH and only.prompt_logprobs
        request.sampling.ClearField("prompt_logprobs")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [response async for response in stub.Chat(request)]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
