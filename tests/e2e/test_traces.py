"""One request is one tree of spans, from real processes over real OTLP/gRPC; what is not traced leaves nothing, and a collector that is gone costs nothing."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pods import Pods, Stage, running_pods
from tests.fakes.otlp_collector import CollectedSpan, Collector, running_collector
from tests.ports import free_port
from triserve.rpc.channel import open_channel
from triserve.rpc.traces.context import SpanContext
from triserve.v1 import compute_pb2, compute_pb2_grpc

TINY = Path(__file__).parents[1] / "tiny_model"
STAGES: tuple[Stage, ...] = ("tokenizer", "sampler", "sampler", "compute")
CHAT = "/v1/chat/completions"
MAX_TOKENS = 24
GATEWAY = {
    "GATEWAY_CACHE": "true",
    "GATEWAY_LOG_FORMAT": "json",
    "GATEWAY_TRACE_SAMPLE_RATIO": "0",
    "GATEWAY_TRACE_CLIENT_LIMIT_PER_S": "100",
}
# What lies under an attempt, by service.
ATTEMPT = ["triserve-compute decode", "triserve-compute prefill", "triserve-compute queue", "triserve-sampler sample"]
EVERY_KIND = [
    f"triserve-gateway POST {CHAT}",
    "triserve-gateway tokenize",
    "triserve-tokenizer encode",
    "triserve-gateway cache",
    "triserve-gateway attempt",
    *ATTEMPT,
    "triserve-gateway deliver",
]


def names(spans: Sequence[CollectedSpan]) -> list[str]:
    return [f"{span.service} {span.name}" for span in spans]


def children(spans: Sequence[CollectedSpan], parent: CollectedSpan) -> list[CollectedSpan]:
    return [span for span in spans if span.parent_id == parent.span_id]


def require_a_tree(spans: Sequence[CollectedSpan], caller: SpanContext) -> CollectedSpan:
    """The root: the one span under the client's own; every other is under one of ours."""
    known = {span.span_id for span in spans}
    assert len(known) == len(spans)
    (root,) = [span for span in spans if span.parent_id not in known]
    assert root.parent_id == caller.span_id
    assert all(span.began_ns <= span.ended_ns for span in spans)
    processes = {span.span_id: span.service for span in spans}
    assert all(span.is_entry == (processes.get(span.parent_id) != span.service) for span in spans)
    return root


async def ask(pods: Pods, caller: SpanContext | None, **more: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "The secret word is swordfish."}], "max_tokens": MAX_TOKENS, "temperature": 0, **more}
    headers = {"traceparent": caller.traceparent} if caller is not None else {}
    async with pods.session() as session, session.post(CHAT, json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, Any] = await response.json()
        return answer


async def collected(collector: Collector, caller: SpanContext, wanted: Sequence[str]) -> list[CollectedSpan]:
    """All spans of a request, when as many of each name have come as are wanted."""
    await collector.until(lambda: sorted(names(collector.of(caller.trace_id))) == sorted(wanted), f"there are {sorted(wanted)}")
    return collector.of(caller.trace_id)


async def lose_a_sampler(pods: Pods, caller: SpanContext) -> None:
    """Has two choices answered, of which one loses its sampler when all of its tokens are computed and none is text."""
    lost = pods.of("sampler")[1]
    lost.process.send_signal(signal.SIGSTOP)
    (replica,) = pods.of("compute")
    async with open_channel(replica.address) as channel:
        stub: Any = compute_pb2_grpc.ComputeServiceStub(channel)

        async def num_computed() -> int:
            info: compute_pb2.GetComputeInfoResponse = await stub.GetComputeInfo(compute_pb2.GetComputeInfoRequest())
            return info.load.decode_tokens

        before = await num_computed()
        asking = asyncio.create_task(ask(pods, caller, n=2, ignore_eos=True))
        async with asyncio.timeout(30.0):
            while (left := before + 2 * MAX_TOKENS - await num_computed()) > 0:
                assert not asking.done(), f"it has ended, and {left} tokens are not computed"
                await asyncio.sleep(0.01)
    lost.process.kill()
    assert len((await asking)["choices"]) == 2


async def test_one_request_is_one_tree_whatever_becomes_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    one, three, lost, untold = (SpanContext.root() for _ in range(4))
    async with (
        running_collector() as collector,
        running_pods(stage_variables(collector), tls=None, **gateway_variables(collector.target)) as pods,
        gateway_without_a_collector(pods) as (other, other_process),
    ):
        await asyncio.gather(*(pods.add(stage, TINY) for stage in STAGES))
        await pods.until_ready()
        await other.until_ready()
        plain = await ask(pods, None)
        assert (await ask(other, untold))["choices"] == plain["choices"]
        other_process.send_signal(signal.SIGTERM)
        await ask(pods, one, cache={"salt": "another"})
        await ask(pods, three, n=3)

        spans = await collected(collector, one, EVERY_KIND)
        root = require_a_tree(spans, one)
        (attempt,) = (span for span in spans if span.name == "attempt")
        assert sorted(names(children(spans, attempt))) == ATTEMPT
        assert root.attributes["gen_ai.usage.output_tokens"] == plain["usage"]["completion_tokens"]
        (line,) = [line for line in json_lines(capfd) if str(root.attributes["triserve.request_id"]) in line["message"]]
        assert line["trace_id"] == root.trace_id

        of_choices = [name for name in EVERY_KIND if name != "triserve-gateway cache"]
        spans = await collected(collector, three, [*of_choices, *2 * ["triserve-gateway attempt", *ATTEMPT]])
        require_a_tree(spans, three)
        attempts = [span for span in spans if span.name == "attempt"]
        assert sorted(span.attributes["triserve.choice"] for span in attempts) == [0, 1, 2]
        assert all(sorted(names(children(spans, span))) == ATTEMPT for span in attempts)

        # What was killed tells of nothing.
        await lose_a_sampler(pods, lost)
        without_a_sampler = ATTEMPT[:-1]
        spans = await collected(
            collector, lost, [*of_choices, "triserve-gateway attempt", *ATTEMPT, "triserve-gateway attempt", *without_a_sampler]
        )
        require_a_tree(spans, lost)
        (failed,) = (span for span in spans if span.name == "attempt" and span.is_error)
        (again,) = (span for span in spans if span.name == "attempt" and span.attributes["triserve.epoch"] == 1)
        assert (failed.attributes["triserve.epoch"], again.attributes["triserve.choice"]) == (0, failed.attributes["triserve.choice"])
        assert sorted(names(children(spans, failed))) == without_a_sampler
        assert sorted(names(children(spans, again))) == ATTEMPT

        # Batches go one after the other: those before the last are counted.
        async with pods.session() as session, session.get("/metrics") as response:
            (exported,) = re.findall(r"^triserve_spans_exported_total (\S+)$", await response.text(), re.MULTILINE)
        assert float(exported) >= len([span for span in collector.of(three.trace_id) if span.service == "triserve-gateway"])
        assert {span.trace_id for span in collector.spans} == {one.trace_id, three.trace_id, lost.trace_id, untold.trace_id}, (
            "who did not ask is traced"
        )
        assert "swordfish" not in repr(collector.spans)


@asynccontextmanager
async def gateway_without_a_collector(pods: Pods) -> AsyncIterator[tuple[Pods, asyncio.subprocess.Process]]:
    """Another gateway of the same stages, whose collector is not there; by the end it must have left as it was told to."""
    other = replace(pods)
    process = await other.start_gateway(**gateway_variables(f"127.0.0.1:{free_port()}"))
    try:
        yield other, process
        assert await asyncio.wait_for(process.wait(), 30.0) == 0
    finally:
        if process.returncode is None:
            process.kill()


def gateway_variables(target: str) -> dict[str, str]:
    return {**GATEWAY, "GATEWAY_OTLP_ENDPOINT": f"http://{target}"}


def stage_variables(collector: Collector) -> dict[str, dict[str, str]]:
    return {stage: {f"{stage.upper()}_OTLP_ENDPOINT": f"http://{collector.target}"} for stage in STAGES}


def json_lines(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
