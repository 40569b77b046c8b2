"""Any one process may die at any time: `triserve up` has it back, what was under way ends explicitly, new requests succeed."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until

PARTS = ["tokenizer_svc", "compute_svc", "compute_svc.engine", "sampler_svc", "gateway"]
_LONG: dict[str, Any] = {"prompt": [301, 302], "ignore_eos": True}
_STREAM = {**_LONG, "max_tokens": 1800, "min_tokens": 1800, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def mortal_pipeline() -> Iterator[Pipeline]:
    pipeline = Pipeline(["--dtype", "float32"])
    pipeline.start()
    yield pipeline
    pipeline.stop()


@pytest.fixture(scope="module")
def undisturbed(mortal_pipeline: Pipeline) -> dict[str, Any]:
    """What is answered while nothing dies."""

    async def ask() -> dict[str, Any]:
        async with aiohttp.ClientSession() as session:
            return await _answer(session, mortal_pipeline)

    wait_until(lambda: _answers(mortal_pipeline), "serving before")
    return asyncio.run(ask())


def _answers(pipeline: Pipeline) -> bool:
    body = json.dumps({"prompt": "Hello", "max_tokens": 3, "temperature": 0}).encode()
    request = urllib.request.Request(f"{pipeline.url}/v1/completions", data=body, headers={"Cache-Control": "no-store"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(json.load(response)["choices"][0]["finish_reason"])
    except (urllib.error.URLError, OSError):
        return False


def _retries(pipeline: Pipeline) -> float:
    return pipeline.metric("triserve_retries_total", stage="compute")


def _decoded(pipeline: Pipeline) -> int:
    """Tokens that the replica has decoded since its start."""
    return sum(load.decode_tokens for load in pipeline.loads())


@pytest.mark.parametrize("module", PARTS)
def test_a_part_killed_while_idle_is_replaced_and_serves(mortal_pipeline: Pipeline, module: str) -> None:
    victim = mortal_pipeline.parts(module)[0]
    victim.kill()
    wait_until(lambda: [p.pid for p in mortal_pipeline.parts(module)] not in ([], [victim.pid]), f"{module} has been started again")
    wait_until(lambda: _answers(mortal_pipeline), "a new request succeeds")
    wait_until(mortal_pipeline.is_idle, "nothing is left over")


async def _answer(session: aiohttp.ClientSession, pipeline: Pipeline) -> dict[str, Any]:
    """Drawn with a seed, and not streamed: until it is complete nothing of it is sent."""
    body = {**_LONG, "max_tokens": 400, "min_tokens": 400, "temperature": 0.7, "top_k": 8, "seed": 11, "logprobs": 1}
    async with session.post(f"{pipeline.url}/v1/completions", json=body, headers={"Cache-Control": "no-store"}) as response:
        assert response.status == 200, await response.text()
        choice: dict[str, Any] = (await response.json())["choices"][0]
        return choice


@pytest.mark.parametrize("module", ["compute_svc", "compute_svc.engine", "sampler_svc"])
async def test_a_stream_under_way_ends_in_an_error_event_and_an_answer_of_which_nothing_was_sent_is_the_same_to_the_byte(
    mortal_pipeline: Pipeline, undisturbed: dict[str, Any], module: str
) -> None:
    await asyncio.to_thread(wait_until, lambda: _answers(mortal_pipeline), "serving before")
    retries, decoded = _retries(mortal_pipeline), _decoded(mortal_pipeline)
    async with aiohttp.ClientSession() as session:
        answer = asyncio.create_task(_answer(session, mortal_pipeline))
        await asyncio.to_thread(wait_until, lambda: _decoded(mortal_pipeline) > decoded + 50, "the answer is under way")
        response = await session.post(f"{mortal_pipeline.url}/v1/completions", json=_STREAM)
        await response.content.readline()
        assert not answer.done()
        mortal_pipeline.parts(module)[0].kill()
        events = [line.decode().strip() async for line in response.content if line.strip()]
        response.close()
        last = json.loads(events[-1].removeprefix("data: "))
        assert last["error"]["code"] == "UNAVAILABLE" or last["error"]["type"] == "service_unavailable_error", last
        assert await answer == undisturbed
    assert _retries(mortal_pipeline) > retries
    await asyncio.to_thread(wait_until, lambda: _answers(mortal_pipeline), "a new request succeeds")
    await asyncio.to_thread(wait_until, mortal_pipeline.is_idle, "nothing is left over")


async def test_a_request_under_way_when_the_gateway_dies_is_cancelled_in_compute(mortal_pipeline: Pipeline) -> None:
    await asyncio.to_thread(wait_until, lambda: _answers(mortal_pipeline), "serving before")
    async with aiohttp.ClientSession() as session:
        response = await session.post(f"{mortal_pipeline.url}/v1/completions", json=_STREAM)
        await response.content.readline()
        mortal_pipeline.parts("gateway")[0].kill()
        with pytest.raises(aiohttp.ClientError):
            async for _ in response.content:
                pass
        response.close()
    await asyncio.to_thread(wait_until, lambda: _answers(mortal_pipeline), "a new request succeeds")
    await asyncio.to_thread(wait_until, mortal_pipeline.is_idle, "compute and sampler let go of the request")
