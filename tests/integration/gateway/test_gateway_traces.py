"""What a gateway records of a request: one tree under the client's span, whatever becomes of it; and nothing of one that is not traced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.fakes.fake_compute import FakeCompute, Say, echo
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.fakes.recorded_spans import RecordedSpans
from triserve.rpc.channel import open_channel
from triserve.rpc.errors import Internal, Unavailable
from triserve.rpc.traces.context import SpanContext, read_traceparent
from triserve.rpc.traces.spans import Span
from triserve.v1 import chat_pb2, chat_pb2_grpc, compute_pb2, tokenizer_pb2

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
CALLER = SpanContext.root()
TRACED = {"traceparent": CALLER.traceparent}


class Traced:
    """A gateway, its client and its spans."""

    def __init__(self, fleet: GatewayFleet, session: aiohttp.ClientSession, recorded: RecordedSpans) -> None:
        self.fleet = fleet
        self.session = session
        self.recorded = recorded

    async def ask(self, headers: dict[str, str] | None = None, *, status: int = 200, **more: Any) -> bytes:
        """The answer's body."""
        async with self.session.post(CHAT, json={**QUESTION, **more}, headers=TRACED if headers is None else headers) as response:
            assert response.status == status
            return await response.read()

    async def root(self) -> Span:
        """The first span of the one request that was traced, when it has ended; all others must be under it."""
        await eventually(lambda: any(span.kind == "server" for span in self.recorded.spans), "the request's span has ended")
        (root,) = [span for span in self.recorded.spans if span.kind == "server"]
        known = {span.context.span_id for span in self.recorded.spans}
        assert {span.context.trace_id for span in self.recorded.spans} == {root.context.trace_id}
        assert len(known) == len(self.recorded.spans)
        assert all(span is root or span.parent_id in known for span in self.recorded.spans)
        assert all(root.began_at <= span.began_at <= span.ended_at <= root.ended_at for span in self.recorded.spans)
        return root


@asynccontextmanager
async def tracing(*computes: FakeCompute, **settings: Any) -> AsyncIterator[Traced]:
    recorded = RecordedSpans.in_real_time()
    own = {"trace_sample_ratio": 0.0, "trace_client_limit_per_s": 1000.0, **settings}
    async with (
        running_fleet(computes=computes or None, tracer=recorded.tracer, **own) as fleet,
        aiohttp.ClientSession(fleet.url) as session,
    ):
        yield Traced(fleet, session, recorded)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_one_tree_under_the_clients_span(stream: bool) -> None:
    async with tracing() as traced:
        await traced.ask(stream=stream)
        root = await traced.root()
        assert (root.name, root.context.trace_id, root.parent_id, root.error) == (f"POST {CHAT}", CALLER.trace_id, CALLER.span_id, None)
        assert sorted(traced.recorded.names) == ["POST " + CHAT, "attempt", "cache", "deliver", "tokenize"]
        assert all(span.parent_id == root.context.span_id for span in traced.recorded.spans if span is not root)
        wanted = {
            "http.route": CHAT,
            "http.request.method": "POST",
            "http.response.status_code": 200,
            "gen_ai.operation.name": "chat",
            "gen_ai.request.stream": stream,
            "gen_ai.response.finish_reasons": ["stop"],
            "triserve.tenant": "default",
            "triserve.outcome": "ok",
            "triserve.cache.status": "miss",
        }
        assert wanted.items() <= root.attributes.items()
        assert root.attributes["gen_ai.usage.output_tokens"] == traced.recorded.the("attempt").attributes["gen_ai.usage.output_tokens"]
        told = repr(traced.recorded.spans)
        assert "Hello" not in told and "assistant" not in told


async def test_a_completion_is_traced_too_and_each_of_its_prompts_is_encoded_under_it() -> None:
    async with tracing() as traced:
        body = {"prompt": ["One", "Two"], "max_tokens": 2, "model": "tiny"}
        async with traced.session.post("/v1/completions", json=body, headers=TRACED) as response:
            assert response.status == 200
        root = await traced.root()
        assert (root.name, root.attributes["gen_ai.operation.name"]) == ("POST /v1/completions", "text_completion")
        assert root.attributes["gen_ai.request.model"] == "tiny"
        assert [len(traced.recorded.named(name)) for name in ("tokenize", "attempt", "deliver")] == [2, 2, 1]


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/responses", {"input": "Hello"}), ("/v1/messages", {"messages": QUESTION["messages"], "max_tokens": 99})]
)
async def test_other_doors_are_traced_as_the_chats_they_are(path: str, body: dict[str, Any]) -> None:
    async with tracing() as traced:
        async with traced.session.post(path, json=body, headers=TRACED) as response:
            assert response.status == 200
        root = await traced.root()
        assert (root.name, root.attributes["gen_ai.operation.name"]) == (f"POST {path}", "chat")
        assert [len(traced.recorded.named(name)) for name in ("tokenize", "attempt", "deliver")] == [1, 1, 1]


async def test_stages_are_told_of_the_span_that_asks_them() -> None:
    async with tracing() as traced:
        await traced.ask()
        await traced.root()
        (submitted,) = traced.fleet.compute.submitted
        (asked,) = traced.fleet.tokenizer.asked
        assert read_traceparent(submitted.traceparent) == traced.recorded.the("attempt").context
        assert read_traceparent(asked.encode.traceparent) == traced.recorded.the("tokenize").context


async def test_each_choice_has_an_attempt_of_its_own() -> None:
    async with tracing() as traced:
        await traced.ask(n=3, temperature=1)
        await traced.root()
        attempts = traced.recorded.named("attempt")
        assert sorted((span.attributes["triserve.choice"], span.attributes["triserve.epoch"]) for span in attempts) == [
            (0, 0),
            (1, 0),
            (2, 0),
        ]
        assert {submit.traceparent for submit in traced.fleet.compute.submitted} == {span.context.traceparent for span in attempts}


async def test_a_kept_answer_is_looked_up_and_delivered_and_asks_nobody_but_the_tokenizer() -> None:
    async with tracing() as traced:
        await traced.ask({})
        assert not traced.recorded.spans
        await traced.ask()
        root = await traced.root()
        assert sorted(traced.recorded.names) == ["POST " + CHAT, "cache", "deliver", "tokenize"]
        assert root.attributes["triserve.cache.status"] == "hit-exact"
        assert traced.recorded.the("cache").attributes == {"triserve.cache.found": True}


async def test_a_retried_attempt_is_a_span_of_its_own_and_says_what_it_failed_with() -> None:
    def lost_once(request: compute_pb2.SubmitRequest) -> list[Say | Unavailable]:
        return [Unavailable("no sampler is ready")] if request.epoch == 0 else [*echo(request)]

    async with tracing(FakeCompute(lost_once)) as traced:
        await traced.ask()
        root = await traced.root()
        attempts = traced.recorded.named("attempt")
        assert [(span.attributes["triserve.epoch"], span.error) for span in attempts] == [(0, "unavailable"), (1, None)]
        assert root.error is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fault_of_ours_is_an_error_and_a_clients_is_not(stream: bool) -> None:
    async with tracing(FakeCompute(lambda request: [Say("a", [97]), Internal("it broke")])) as traced:
        await traced.ask(stream=stream, status=200 if stream else 500)
        root = await traced.root()
        assert (root.error, root.attributes["triserve.outcome"]) == ("internal", "internal")
        assert traced.recorded.the("attempt").error == "internal"
        traced.recorded.spans.clear()
        await traced.ask(stream=stream, status=400, temperature=-1)
        root = await traced.root()
        assert (root.error, root.attributes["http.response.status_code"]) == (None, 400)


async def test_a_client_that_leaves_ends_its_spans() -> None:
    compute = FakeCompute()
    compute.flowing.clear()
    async with tracing(compute) as traced:
        asking = asyncio.create_task(traced.ask(stream=True))
        await eventually(lambda: compute.submitted, "it is under way")
        asking.cancel()
        root = await traced.root()
        assert (root.error, root.attributes["triserve.outcome"]) == (None, "cancelled")
        assert traced.recorded.the("attempt").error == "cancelled"


async def test_what_is_not_traced_leaves_nothing_and_no_stage_hears_of_it() -> None:
    not_sampled = {"traceparent": CALLER.traceparent[:-1] + "0"}
    async with tracing() as traced:
        for headers in ({}, not_sampled, {"traceparent": "nonsense"}):
            await traced.ask(headers, cache={"mode": "bypass"})
        async with traced.session.get("/v1/models", headers=TRACED) as response:
            assert response.status == 200
        assert not traced.recorded.spans
        assert {request.traceparent for request in traced.fleet.compute.submitted} == {""}
        assert {asked.encode.traceparent for asked in traced.fleet.tokenizer.asked} == {""}


async def test_a_gateway_without_a_collector_tells_stages_of_no_trace() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        async with session.post(CHAT, json=QUESTION, headers=TRACED) as response:
            assert response.status == 200
        assert {request.traceparent for request in fleet.compute.submitted} == {""}
        assert {asked.encode.traceparent for asked in fleet.tokenizer.asked} == {""}


async def test_a_trace_changes_no_byte_of_an_answer() -> None:
    async with tracing() as traced:
        bodies = [await traced.ask(headers, cache={"mode": "bypass"}, return_token_ids=True) for headers in ({}, TRACED)]
        plain, with_trace = ([part for part in body.split(b",") if b'"id"' not in part and b'"created"' not in part] for body in bodies)
        assert plain == with_trace
        one, two = traced.fleet.compute.submitted
        two.traceparent, two.request, two.request_id, two.deadline_ms = "", one.request, one.request_id, one.deadline_ms
        two.sampling.seed = one.sampling.seed
        assert one == two


async def test_the_grpc_door_takes_traceparent_from_the_metadata() -> None:
    async with tracing() as traced, open_channel(f"127.0.0.1:{traced.fleet.service.grpc_port}") as channel:
        stub: Any = chat_pb2_grpc.ChatServiceStub(channel)
        chat = chat_pb2.ChatRequest(messages=[tokenizer_pb2.ChatMessage(role="user", content="Hello")])
        for metadata in ((), tuple(TRACED.items())):
            assert [response async for response in stub.Chat(chat, metadata=metadata)]
        root = await traced.root()
        assert (root.name, root.parent_id) == ("triserve.v1.ChatService/Chat", CALLER.span_id)
        assert {"rpc.system": "grpc", "gen_ai.operation.name": "chat", "triserve.outcome": "ok"}.items() <= root.attributes.items()
        assert sorted(set(traced.recorded.names)) == ["attempt", "deliver", "tokenize", root.name]
