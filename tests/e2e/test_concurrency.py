"""Many streams at once: each ends, each says what it says alone, nothing is left over."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI

from tests.e2e.local_pipeline import Pipeline, wait_until

STREAMS = 64


@pytest.fixture
async def client(pipeline: Pipeline) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{pipeline.url}/v1", api_key="none", max_retries=0, timeout=120, default_headers={"Cache-Control": "no-store"}
    ) as client:
        yield client


async def _complete(client: AsyncOpenAI, model: str, prompt: list[int], length: int) -> tuple[str, str | None, list[int]]:
    text, reason = "", None
    tokens: list[int] = []
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=length, temperature=0, stream=True, extra_body={"ignore_eos": True, "return_token_ids": True}
    )
    async for chunk in stream:
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason or reason
        tokens += getattr(chunk.choices[0], "token_ids", None) or []
    return text, reason, tokens


async def test_64_mixed_streams_each_say_what_they_say_alone(pipeline: Pipeline, client: AsyncOpenAI) -> None:
    model = (await client.models.list()).data[0].id
    rng = random.Random(64)
    shapes = [([rng.randrange(300, 1500) for _ in range(rng.randrange(1, 200))], rng.randrange(1, 64)) for _ in range(STREAMS)]
    together = await asyncio.gather(*(_complete(client, model, prompt, length) for prompt, length in shapes))
    for (prompt, length), (text, reason, tokens) in zip(shapes, together, strict=True):
        assert reason == "length"
        assert len(tokens) == length
        alone = await _complete(client, model, prompt, length)
        assert tokens == alone[2], f"a prompt of {len(prompt)} tokens"
        assert text == alone[0]


async def test_64_streams_leave_no_page_task_or_stream_behind(pipeline: Pipeline, client: AsyncOpenAI) -> None:
    model = (await client.models.list()).data[0].id
    await _complete(client, model, [300, 301], 4)
    wait_until(pipeline.is_idle, "idle before")
    tasks = pipeline.metric("triserve_asyncio_tasks")
    assert tasks > 0, "the gateway counts its tasks"
    pages = [load.used_pages + load.cached_pages + load.free_pages for load in pipeline.loads()]
    await asyncio.gather(*(_complete(client, model, [300 + n, 301], 1 + n % 50) for n in range(STREAMS)))
    await client.close()
    wait_until(pipeline.is_idle, "no stage holds anything of any request")
    assert [load.used_pages + load.cached_pages + load.free_pages for load in pipeline.loads()] == pages
    wait_until(lambda: pipeline.metric("triserve_asyncio_tasks") <= tasks, f"no more than {tasks} tasks are left in the gateway")


async def test_the_answer_is_the_same_with_and_without_a_prefix_hit(pipeline: Pipeline, client: AsyncOpenAI) -> None:
    model = (await client.models.list()).data[0].id
    prompt = [400 + n % 700 for n in range(150)]
    hits = [load.cached_tokens for load in pipeline.loads()]
    cold = await _complete(client, model, prompt, 40)
    warm = await _complete(client, model, prompt, 40)
    assert [load.cached_tokens for load in pipeline.loads()] > hits
    assert warm == cold


async def test_several_answers_to_one_prompt_have_it_computed_once(pipeline: Pipeline, client: AsyncOpenAI) -> None:
    model = (await client.models.list()).data[0].id
    prompt = [300 + n % 650 for n in range(203)]
    before = sum(load.prefill_tokens for load in pipeline.loads())
    answer = await client.completions.create(
        model=model, prompt=prompt, n=4, max_tokens=24, temperature=1, seed=5, extra_body={"top_k": 20, "ignore_eos": True}
    )
    assert len({choice.text for choice in answer.choices}) == 4
    # The others compute the last token for themselves, and what does not fill a page if they come when the first has ended.
    computed = sum(load.prefill_tokens for load in pipeline.loads()) - before
    assert len(prompt) + 3 <= computed <= len(prompt) + 3 * 16
