"""The gRPC door, with the client generated from the protos."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.fakes.fake_compute import Say
from tests.fakes.fake_tokenizer import EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    PromptTooLong,
    ServiceError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)
from triserve.v1 import chat_pb2, chat_pb2_grpc, common_pb2, compute_pb2, tokenizer_pb2

ECHO = "user: Hello\nassistant: "


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest.fixture
async def stub(fleet: GatewayFleet) -> AsyncIterator[Any]:
    channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
    yield chat_pb2_grpc.ChatServiceStub(channel)
    await channel.close()


def ask(text: str = "Hello", **fields: Any) -> chat_pb2.ChatRequest:
    return chat_pb2.ChatRequest(messages=[tokenizer_pb2.ChatMessage(role="user", content=text)], **fields)


async def error_of(call: Any) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value, peer="gateway")


async def test_a_chat_streams_and_ends_with_reason_and_usage(stub: Any) -> None:
    responses = [response async for response in stub.Chat(ask())]
    assert "".join(response.text for response in responses) == ECHO
    assert [token for response in responses for token in response.token_ids] == [*ECHO.encode(), EOS]
    assert responses[-1].finish_reason == common_pb2.FINISH_REASON_STOP
    assert responses[-1].usage == chat_pb2.Usage(prompt_tokens=len(ECHO), completion_tokens=len(ECHO) + 1, cached_tokens=2)
    assert not any(response.finish_reason or response.HasField("usage") for response in responses[:-1])
    assert len({response.request_id for response in responses}) == 1


async def test_zero_differs_from_unset(stub: Any, fleet: GatewayFleet) -> None:
    for sampling in (common_pb2.SamplingParams(temperature=0, seed=0, top_logprobs=0), common_pb2.SamplingParams()):
        async for _ in stub.Chat(ask(sampling=sampling, bypass_cache=True)):
            pass
    first, second = (request.sampling for request in fleet.compute.submitted)
    assert first == common_pb2.SamplingParams(temperature=0, seed=0, top_logprobs=0)
    assert second.temperature == 1
    assert second.HasField("seed")
    assert not second.HasField("top_logprobs")


async def test_what_is_text_of_an_answer_is_said_among_the_stopping_parameters(stub: Any, fleet: GatewayFleet) -> None:
    asked = common_pb2.StoppingParams(
        max_tokens=9, stop_strings=["x"], include_stop_string=True, skip_special_tokens=False, spaces_between_special_tokens=False
    )
    async for _ in stub.Chat(ask(stopping=asked)):
        pass
    (request,) = fleet.compute.submitted
    asked.stop_token_ids.append(EOS)
    assert request.stopping == asked


async def test_log_probabilities_come_with_their_tokens(stub: Any) -> None:
    responses = [
        response
        async for response in stub.Chat(
            ask(sampling=common_pb2.SamplingParams(top_logprobs=1), stopping=common_pb2.StoppingParams(max_tokens=3))
        )
    ]
    logprobs = [one for response in responses for one in response.logprobs]
    assert [list(one.top_token_ids) for one in logprobs] == [[ord("u")], [ord("s")], [ord("e")]]
    assert [one.logprob for one in logprobs] == [-0.5] * 3


@pytest.mark.parametrize(
    ("request_", "kind", "field"),
    [
        (chat_pb2.ChatRequest(), InvalidRequest, "messages"),
        (ask(model="gpt-17"), NotFound, "model"),
        (ask("x" * 5000), PromptTooLong, "messages"),
        (ask(sampling=common_pb2.SamplingParams(temperature=float("nan"))), InvalidRequest, "temperature"),
        (ask(sampling=common_pb2.SamplingParams(top_logprobs=1000)), InvalidRequest, "top_logprobs"),
        (ask(sampling=common_pb2.SamplingParams(logit_bias_ids=[1])), InvalidRequest, "logit_bias_values"),
        (ask(sampling=common_pb2.SamplingParams(logit_bias_ids=[258], logit_bias_values=[1])), InvalidRequest, "logit_bias"),
        (ask(stopping=common_pb2.StoppingParams(max_tokens=0)), InvalidRequest, "max_tokens"),
        (ask(stopping=common_pb2.StoppingParams(max_tokens=2, min_tokens=3)), InvalidRequest, "min_tokens"),
        (ask(stopping=common_pb2.StoppingParams(stop_strings=["x"] * 99)), InvalidRequest, "stop_strings"),
        (ask(stopping=common_pb2.StoppingParams(stop_token_ids=[1] * 65)), InvalidRequest, "stop_token_ids"),
        (ask(sampling=common_pb2.SamplingParams(logit_bias_ids=[1] * 1025)), InvalidRequest, "logit_bias_ids"),
        (ask(sampling=common_pb2.SamplingParams(logit_bias_values=[1] * 1025)), InvalidRequest, "logit_bias_values"),
        (chat_pb2.ChatRequest(messages=[tokenizer_pb2.ChatMessage()] * 1025), InvalidRequest, "messages"),
        (ask(template_arguments=[tokenizer_pb2.TemplateArgument()] * 17), InvalidRequest, "chat_template_kwargs"),
    ],
)
async def test_cve_2026_116173_grpc_has_the_limits_http_has(
    stub: Any, fleet: GatewayFleet, request_: Any, kind: type[ServiceError], field: str
) -> None:
    error = await error_of(stub.Chat(request_))
    assert type(error) is kind
    assert error.field == field
    assert not fleet.compute.submitted


async def test_a_large_request_is_refused() -> None:
    async with running_fleet(max_body_bytes=4096) as fleet, open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        assert type(await error_of(chat_pb2_grpc.ChatServiceStub(channel).Chat(ask("x" * 5000)))) is InvalidRequest
        assert not fleet.tokenizer.asked


async def test_a_request_far_too_large_is_refused_before_it_is_parsed() -> None:
    async with running_fleet(max_body_bytes=4096) as fleet, open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in chat_pb2_grpc.ChatServiceStub(channel).Chat(ask("x" * 100_000)):
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fleet.service.gateway.bodies.budget.used == 0


async def test_a_request_counts_among_the_bodies_until_it_is_answered(stub: Any, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    request = ask("Hello")
    call = stub.Chat(request)
    await eventually(lambda: fleet.compute.submitted)
    budget = fleet.service.gateway.bodies.budget
    assert budget.used == request.ByteSize()
    fleet.compute.flowing.set()
    async for _ in call:
        pass
    await eventually(lambda: budget.used == 0)


async def test_cancelling_the_call_cancels_in_compute(stub: Any, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    call = stub.Chat(ask())
    await call.read()
    call.cancel()
    await eventually(lambda: fleet.compute.cancelled == [1])
    assert fleet.active == 0


async def test_cancelling_while_tokenizing_never_reaches_compute(stub: Any, fleet: GatewayFleet) -> None:
    fleet.tokenizer.flowing.clear()
    call = stub.Chat(ask())
    waiting = asyncio.ensure_future(call.read())
    await eventually(lambda: fleet.tokenizer.asked)
    call.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await eventually(lambda: fleet.tokenizer.cancelled)
    assert not fleet.compute.submitted


async def test_the_clients_deadline_travels_and_cancels(stub: Any, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    error = await error_of(stub.Chat(ask(), timeout=0.3))
    assert type(error) is DeadlineExceeded
    assert fleet.compute.submitted[0].deadline_ms <= 300
    await eventually(lambda: fleet.compute.cancelled == [1])


async def test_the_gateways_own_deadline_is_a_status() -> None:
    async with running_fleet(request_timeout_s=0.2) as fleet:
        fleet.compute.flowing.clear()
        async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
            assert type(await error_of(chat_pb2_grpc.ChatServiceStub(channel).Chat(ask()))) is DeadlineExceeded
        await eventually(lambda: fleet.compute.cancelled == [1])


async def test_a_failure_mid_stream_is_a_status(stub: Any, fleet: GatewayFleet) -> None:
    fleet.compute.script = lambda request: [Say("begun", [1]), Unavailable("the sampler was lost")]
    assert type(await error_of(stub.Chat(ask()))) is Unavailable


async def test_one_over_the_limit_is_refused() -> None:
    async with running_fleet(max_active_requests=1) as fleet:
        fleet.compute.flowing.clear()
        async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
            stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
            first = stub.Chat(ask())
            await eventually(lambda: fleet.compute.submitted)
            assert type(await error_of(stub.Chat(ask()))) is Overloaded
            first.cancel()


async def test_a_client_that_does_not_read_is_cut_and_told() -> None:
    def long(request: compute_pb2.SubmitRequest) -> list[Say]:
        return [Say("x" * 50_000, [1]) for _ in range(400)] + [Say("", [], common_pb2.FINISH_REASON_LENGTH)]

    async with running_fleet(stall_timeout_s=0.2) as fleet:
        fleet.compute.script = long
        fleet.compute.flowing.clear()
        async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
            call: Any = chat_pb2_grpc.ChatServiceStub(channel).Chat(ask())
            await eventually(lambda: fleet.compute.submitted)
            fleet.compute.let_through(300)
            await eventually(lambda: fleet.compute.cancelled == [1], "compute was told")
            assert fleet.active == 0
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)) as caught:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert not isinstance(caught.value, grpc.aio.AioRpcError) or type(from_rpc_error(caught.value, peer="gateway")) is Cancelled


async def test_a_key_is_asked_for_where_keys_are(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    async with running_fleet(api_keys_file=keys) as fleet, open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        assert type(await error_of(stub.Chat(ask()))) is Unauthenticated
        assert type(await error_of(stub.Chat(ask(), metadata=(("authorization", "Bearer wrong"),)))) is Unauthenticated
        async for _ in stub.Chat(ask(), metadata=(("authorization", "Bearer secret"),)):
            pass
        assert [request.tenant for request in fleet.compute.submitted] == ["acme"]


async def test_health_follows_the_stages(fleet: GatewayFleet) -> None:
    async with open_channel(f"127.0.0.1:{fleet.service.grpc_port}") as channel:
        assert await is_ready(channel, "triserve.v1.ChatService", timeout_s=5)
        await fleet.compute.server.health.set_ready(False)
        while await is_ready(channel, "triserve.v1.ChatService", timeout_s=5):
            pass
        assert await is_ready(channel, "", timeout_s=5)


async def test_draining_ends_a_stream_with_a_status(fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
    responses: Any = aiter(chat_pb2_grpc.ChatServiceStub(channel).Chat(ask()))
    await anext(responses)
    rest = asyncio.ensure_future(error_of(responses))
    await fleet.service.stop()
    assert type(await rest) is Unavailable
    await channel.close()


TOOL = tokenizer_pb2.FunctionTool(name="get_weather", description="x", parameters_json='{"type": "object"}')


@pytest.mark.parametrize("parallel", [None, True, False])
async def test_reasoning_and_calls_are_apart_from_the_text(parallel: bool | None) -> None:
    one, two = '{"city": "Paris"}', '{"city": "Rome"}'
    calls = "".join(f'<tool_call>{{"name": "get_weather", "arguments": {one}}}</tool_call>' for one in (one, two))
    text = f"<think>Hm.</think>I look.{calls}"
    tokenizer = FakeTokenizer(takes_tools=True, tool_call_format="hermes", reasoning_format="think")
    async with running_fleet(tokenizers=[tokenizer]) as fleet:
        fleet.compute.script = lambda request: [*(Say(one, [1]) for one in text), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]
        channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        responses = [response async for response in stub.Chat(ask(tools=[TOOL], parallel_tool_calls=parallel))]
        await channel.close()
    (asked,) = tokenizer.asked
    assert list(asked.encode.chat.tools) == [TOOL]
    assert "".join(response.text for response in responses) == "I look."
    assert "".join(response.reasoning for response in responses) == "Hm."
    deltas = [delta for response in responses for delta in response.tool_calls]
    arguments = ["".join(delta.arguments for delta in deltas if delta.index == index) for index in (0, 1)]
    assert arguments == ([one, ""] if parallel is False else [one, two])
    assert [(delta.name, bool(delta.id)) for delta in deltas if delta.name or delta.id] == [("get_weather", True)] * (
        1 + (parallel is not False)
    )
    assert responses[-1].finish_reason == common_pb2.FINISH_REASON_STOP


async def test_tools_are_refused_where_the_template_takes_none_or_there_are_too_many(stub: Any) -> None:
    for tools, said in (([TOOL], "takes no tools"), ([TOOL] * 129, "the limit is 128")):
        error = await error_of(stub.Chat(ask(tools=tools)))
        assert (error.field, said in error.message) == ("tools", True)
    turn = tokenizer_pb2.ChatMessage(role="assistant", tool_calls=[tokenizer_pb2.ToolCall(id="x", name="f")] * 129)
    error = await error_of(stub.Chat(chat_pb2.ChatRequest(messages=[turn])))
    assert error.field == "messages[0].tool_calls"


@pytest.mark.parametrize(
    ("fields", "holds"),
    [
        ({}, None),
        ({"tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_MODE_REQUIRED)}, "answer: marked"),
        ({"tool_choice": chat_pb2.ToolChoice(name="get_weather")}, "answer: marked"),
        ({"strict_tools": ["get_weather"]}, "WITHOUT_0"),
        ({"tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_MODE_NONE), "strict_tools": ["get_weather"]}, None),
    ],
    ids=["as it likes", "required", "named", "strict", "none"],
)
async def test_an_answer_is_held_to_the_calls_that_are_asked_for(fields: dict[str, Any], holds: str | None) -> None:
    tokenizer = FakeTokenizer(takes_tools=True, tool_call_format="hermes")
    async with running_fleet(tokenizers=[tokenizer]) as fleet:
        channel = open_channel(f"127.0.0.1:{fleet.service.grpc_port}")
        async for _ in chat_pb2_grpc.ChatServiceStub(channel).Chat(ask(tools=[TOOL], **fields)):
            pass
        await channel.close()
    (request,) = fleet.compute.submitted
    assert request.sampling.HasField("grammar") is (holds is not None)
    assert (holds or "") in request.sampling.grammar.lark
    (asked,) = tokenizer.asked
    assert len(asked.encode.chat.tools) == (fields.get("tool_choice") is None or fields["tool_choice"].mode != chat_pb2.TOOL_MODE_NONE)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": chat_pb2.ToolChoice(name="g")}, "tool_choice"),
        ({"tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_MODE_NONE, name="get_weather")}, "tool_choice.name"),
        ({"tool_choice": chat_pb2.ToolChoice(mode=9)}, "tool_choice.mode"),  # type: ignore[arg-type]
        ({"tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_MODE_REQUIRED), "tools": []}, "tool_choice"),
        ({"strict_tools": ["g"]}, "strict_tools"),
        ({"strict_tools": ["get_weather"] * 129}, "strict_tools"),
        ({"sampling": common_pb2.SamplingParams(grammar=common_pb2.Grammar(regex="a", frame="start: @text"))}, "grammar.frame"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_what_is_wrong_with_calls_that_are_asked_for_is_named(stub: Any, fields: dict[str, Any], field: str) -> None:
    assert (await error_of(stub.Chat(ask(**{"tools": [TOOL], **fields})))).field == field
