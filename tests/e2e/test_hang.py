"""Any one process may stop answering at any time, as a deadlock or a SIGSTOP makes it: `triserve up` replaces it, nobody has to help."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

import aiohttp
import psutil
import pytest

from tests.e2e.local_pipeline import Pipeline, wait_until

# Long enough for a part on a busy machine to answer within.
HANG_TIMEOUT_S = 6
# What a part takes to be noticed and to start again, on a busy machine.
BOUND_S = 60
PARTS = ["tokenizer_svc", "sampler_svc", "compute_svc", "compute_svc.engine", "gateway"]


@pytest.fixture(scope="module")
def pipeline_under_watch() -> Iterator[Pipeline]:
    pipeline = Pipeline(["--dtype", "float32", "--hang-timeout", str(HANG_TIMEOUT_S)])
    pipeline.start()
    yield pipeline
    pipeline.stop()


def _answers(pipeline: Pipeline) -> bool:
    body = json.dumps({"prompt": "Hello", "max_tokens": 3, "temperature": 0}).encode()
    request = urllib.request.Request(f"{pipeline.url}/v1/completions", data=body, headers={"Cache-Control": "no-store"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return bool(json.load(response)["choices"][0]["finish_reason"])
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("module", PARTS)
async def test_a_part_that_hangs_is_replaced_and_the_others_stay(pipeline_under_watch: Pipeline, module: str) -> None:
    pipeline = pipeline_under_watch
    before = {part: [process.pid for process in pipeline.parts(part)] for part in PARTS}
    victim = psutil.Process(before[module][0])
    victim.suspend()
    await asyncio.to_thread(wait_until, lambda: not victim.is_running(), f"{module} is ended", timeout_s=BOUND_S)
    await _serves_again(pipeline, before, module)


async def test_a_request_under_way_when_the_engine_hangs_ends_in_an_error_event(pipeline_under_watch: Pipeline) -> None:
    pipeline = pipeline_under_watch
    before = {part: [process.pid for process in pipeline.parts(part)] for part in PARTS}
    body = {"prompt": [301, 302], "max_tokens": 1800, "min_tokens": 1800, "ignore_eos": True, "temperature": 0, "stream": True}
    timeout = aiohttp.ClientTimeout(total=BOUND_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.post(f"{pipeline.url}/v1/completions", json=body) as response:
        await response.content.readline()
        pipeline.parts("compute_svc.engine")[0].suspend()
        events = [line.decode().strip() async for line in response.content if line.startswith(b"data: ")]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
    await _serves_again(pipeline, before, "compute_svc.engine")


async def _serves_again(pipeline: Pipeline, before: dict[str, list[int]], module: str) -> None:
    """And with the same processes, but for the one that hung."""
    await asyncio.to_thread(wait_until, lambda: _answers(pipeline), "a new request succeeds", timeout_s=BOUND_S)
    # The engine and its replica live and die together.
    replaced = {"compute_svc", "compute_svc.engine"} if module.startswith("compute_svc") else {module}
    after = {part: [process.pid for process in pipeline.parts(part)] for part in PARTS}
    assert {part for part in PARTS if before[part] != after[part]} == replaced
    await asyncio.to_thread(wait_until, pipeline.is_idle, "nothing is left over", timeout_s=BOUND_S)
