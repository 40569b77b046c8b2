"""A gRPC client generated from the protos against real processes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until
from triserve.rpc.errors import InvalidRequest, NotFound, from_rpc_error
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, tokenizer_pb2


@pytest.fixture
async def stub(pipeline: Pipeline) -> AsyncIterator[chat_pb2_grpc.ChatServiceAsyncStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{pipeline.grpc_port}") as channel:
        yield chat_pb2_grpc.ChatServiceStub(channel)


def _ask(text: str, **fields: object) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(
        messages=[tokenizer_pb2.ChatMessage(role="user", content=text)],
        sampling=common_pb2.SamplingParams(temperature=0),
        bypass_cache=True,
        **fields,  # type: ignore[arg-type]
    )


async def test_a_chat_streams_text_and_ends_with_reason_and_usage(stub: chat_pb2_grpc.ChatServiceAsyncStub) -> None:
    responses = [response async for response in stub.Chat(_ask("What is Triserve?"), timeout=60)]
    assert "Triserve" in "".join(response.text for response in responses)
    assert responses[-1].finish_reason == common_pb2.FINISH_REASON_STOP
    assert all(response.finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED for response in responses[:-1])
    assert responses[-1].usage.completion_tokens == sum(len(response.token_ids) for response in responses)
    assert len({response.request_id for response in responses}) == 1


async def test_a_chat_without_messages_is_refused_by_name(stub: chat_pb2_grpc.ChatServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Chat(chat_pb2.ChatRequest(), timeout=60):
            pass
    error = from_rpc_error(caught.value, peer="gateway")
    assert type(error) is InvalidRequest
    assert error.field == "messages"


async def test_an_unknown_model_is_not_found(stub: chat_pb2_grpc.ChatServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Chat(_ask("Hello", model="gpt-17"), timeout=60):
            pass
    assert type(from_rpc_error(caught.value, peer="gateway")) is NotFound


async def test_cancelling_the_call_frees_the_request(pipeline: Pipeline, stub: chat_pb2_grpc.ChatServiceAsyncStub) -> None:
    request = _ask("Hello", ignore_eos=True, stopping=common_pb2.StoppingParams(max_tokens=1500, min_tokens=1500))
    call = stub.Chat(request, timeout=60)
    async for _ in call:
        break
    call.cancel()
    wait_until(pipeline.is_idle, "the cancelled call's request is gone everywhere")
