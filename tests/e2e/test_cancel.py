"""A client that leaves frees everything its request held, wherever the request is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until

ENDLESS = {"max_tokens": 1500, "min_tokens": 1500, "ignore_eos": True, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def narrow_pipeline() -> Iterator[Pipeline]:
    """A pipeline whose replica runs one request at a time and prefills slowly, so that each stage can be met."""
    pipeline = Pipeline(["--dtype", "float32"], environment={"COMPUTE_MAX_RUNNING_REQUESTS": "1", "COMPUTE_STEP_BUDGET_TOKENS": "16"})
    pipeline.start()
    yield pipeline
    pipeline.stop()


async def _post(session: aiohttp.ClientSession, pipeline: Pipeline, body: dict[str, Any]) -> aiohttp.ClientResponse:
    return await session.post(f"{pipeline.url}/v1/completions", json=body, headers={"Cache-Control": "no-store"})


def _running(pipeline: Pipeline) -> int:
    return sum(load.running_requests for load in pipeline.loads())


def _waiting(pipeline: Pipeline) -> int:
    return sum(load.waiting_requests for load in pipeline.loads())


async def test_leaving_while_decoding_frees_the_pages(narrow_pipeline: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        response = await _post(session, narrow_pipeline, {"prompt": [301, 302], **ENDLESS})
        await response.content.readline()
        assert sum(load.used_pages for load in narrow_pipeline.loads()) > 0
        response.close()
    wait_until(narrow_pipeline.is_idle, "the pages of a decoding request are free")


async def test_leaving_while_queued_takes_the_request_out_of_the_queue(narrow_pipeline: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        first = await _post(session, narrow_pipeline, {"prompt": [301, 302], **ENDLESS})
        await first.content.readline()
        queued = asyncio.create_task(_post(session, narrow_pipeline, {"prompt": [303, 304], **ENDLESS, "stream": False}))
        await asyncio.to_thread(wait_until, lambda: _waiting(narrow_pipeline) == 1, "the second request is queued")
        queued.cancel()
        await asyncio.to_thread(wait_until, lambda: _waiting(narrow_pipeline) == 0, "the queue is empty")
        assert _running(narrow_pipeline) == 1
        first.close()
    wait_until(narrow_pipeline.is_idle, "nothing is left")


async def test_leaving_while_prefilling_frees_the_pages(narrow_pipeline: Pipeline) -> None:
    before = sum(load.prefill_tokens for load in narrow_pipeline.loads())
    async with aiohttp.ClientSession() as session:
        body = {"prompt": [310 + n % 900 for n in range(1900)], **ENDLESS, "max_tokens": 50, "min_tokens": 50}
        long = asyncio.create_task(_post(session, narrow_pipeline, {**body, "stream": False}))
        await asyncio.to_thread(
            wait_until, lambda: sum(load.prefill_tokens for load in narrow_pipeline.loads()) > before, "the prefill has begun"
        )
        long.cancel()
    wait_until(narrow_pipeline.is_idle, "the pages of a prefilling request are free")


async def test_leaving_while_tokenizing_never_reaches_compute(narrow_pipeline: Pipeline) -> None:
    tokenizer = narrow_pipeline.parts("tokenizer_svc")[0]
    submitted = sum(load.prefill_tokens for load in narrow_pipeline.loads())
    tokenizer.suspend()
    try:
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(_post(session, narrow_pipeline, {"prompt": "a text", **ENDLESS}))
            await asyncio.to_thread(
                wait_until, lambda: narrow_pipeline.metric("triserve_active_requests") == 1, "the gateway has the request"
            )
            request.cancel()
            await asyncio.to_thread(wait_until, lambda: narrow_pipeline.metric("triserve_active_requests") == 0, "the gateway let go of it")
    finally:
        tokenizer.resume()
    wait_until(narrow_pipeline.is_healthy, "the tokenizer is back")
    wait_until(narrow_pipeline.is_idle, "nothing is left")
    assert sum(load.prefill_tokens for load in narrow_pipeline.loads()) == submitted


async def test_a_cancelled_stream_does_not_disturb_its_neighbour(pipeline: Pipeline) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"prompt": [320, 321], "max_tokens": 200, "ignore_eos": True, "temperature": 0, "stream": True}
        neighbour = await _post(session, pipeline, body)
        leaver = await _post(session, pipeline, {"prompt": [322, 323], **ENDLESS})
        await leaver.content.readline()
        leaver.close()
        lines = [line.decode().strip() async for line in neighbour.content if line.strip()]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
