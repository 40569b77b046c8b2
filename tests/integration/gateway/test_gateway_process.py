"""`python -m gateway` as an operator meets it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer

ROOT = Path(__file__).parents[3]


@asynccontextmanager
async def gateway_process(**settings: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, **{f"GATEWAY_{name.upper()}": value for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", cwd=ROOT, env=environment, stderr=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def read_until(process: asyncio.subprocess.Process, pattern: str) -> re.Match[str]:
    assert process.stderr is not None
    while line := (await process.stderr.readline()).decode():
        if match := re.search(pattern, line):
            return match
    raise AssertionError(f"the log ended without {pattern}")


async def test_it_serves_and_leaves_with_0_on_sigterm() -> None:
    tokenizer, compute = FakeTokenizer(), FakeCompute()
    await tokenizer.start()
    await compute.start()
    addresses = {"listen": "127.0.0.1:0", "grpc_listen": "127.0.0.1:0", "tokenizers": tokenizer.target, "computes": compute.target}
    async with gateway_process(**addresses) as process, aiohttp.ClientSession() as session:
        port = (await read_until(process, r"HTTP on port (\d+)"))[1]
        for _ in range(2):
            await read_until(process, r"connected to (tokenizer|compute)")
        async with session.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "abc"}) as response:
            assert (await response.json())["choices"][0]["text"] == "abc"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    await tokenizer.kill()
    await compute.kill()


async def test_a_bad_setting_is_named_and_ends_it_with_2() -> None:
    async with gateway_process(computes="127.0.0.1:1", tokenizers="nowhere") as process:
        _, log = await process.communicate()
        assert process.returncode == 2
        assert b"GATEWAY_TOKENIZERS" in log
        assert b"nowhere" in log
