"""Several gateway processes on one port, as an operator and as clients meet them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import eventually
from tests.integration.gateway.test_gateway_process import gateway_process, read_until
from tests.ports import free_port

_ASKED = 48
_PATIENCE_S = 60.0


class Served(NamedTuple):
    """A gateway of two workers."""

    process: asyncio.subprocess.Process
    url: str
    metrics: str
    compute: FakeCompute

    def workers(self) -> list[int]:
        """Ids of their processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@asynccontextmanager
async def served(**settings: str) -> AsyncIterator[Served]:
    tokenizer, compute = FakeTokenizer(), FakeCompute()
    await tokenizer.start()
    await compute.start()
    metrics = f"127.0.0.1:{free_port()}"
    addresses = {"listen": "127.0.0.1:0", "grpc_listen": "127.0.0.1:0", "tokenizers": tokenizer.target, "computes": compute.target}
    async with gateway_process(workers="2", metrics_listen=metrics, **addresses, **settings) as process:
        port = (await read_until(process, r"HTTP on 127\.0\.0\.1:(\d+)"))[1]
        assert process.stderr is not None
        reading = asyncio.create_task(process.stderr.read())
        one = Served(process, f"http://127.0.0.1:{port}", f"http://{metrics}", compute)
        await until_readyz(one, 200)
        yield one
        reading.cancel()
    await tokenizer.kill()
    await compute.kill()


async def until_readyz(one: Served, status: int) -> None:
    """Waits until those who watch are told that it is ready, or that it is not."""
    async with asyncio.timeout(_PATIENCE_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{one.metrics}/readyz") as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.01)


async def ask(url: str) -> str:
    """On a connection of its own, which goes to one worker or another."""
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/completions", json={"prompt": "abc"}) as response:
        return str((await response.json())["choices"][0]["text"])


async def requests_by_worker(one: Served) -> Counter[str]:
    counts: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session, session.get(f"{one.metrics}/metrics") as response:
        for family in text_string_to_metric_families(await response.text()):
            for sample in family.samples:
                if sample.name == "triserve_requests_total":
                    counts[sample.labels["worker"]] += int(sample.value)
    return counts


async def test_both_answer_on_one_port_and_are_counted_apart_and_one_that_dies_is_replaced_and_all_die_with_their_parent() -> None:
    async with served() as one:
        assert await asyncio.gather(*(ask(one.url) for _ in range(_ASKED))) == ["abc"] * _ASKED
        counts = await requests_by_worker(one)
        assert counts.keys() == {"0", "1"} and counts.total() == _ASKED
        assert len(one.compute.hellos) == 2
        before = one.workers()
        os.kill(before[0], signal.SIGKILL)
        await eventually(lambda: len(one.compute.hellos) == 3)
        assert len(one.workers()) == 2 and before[1] in one.workers()
        await until_readyz(one, 200)
        assert await asyncio.gather(*(ask(one.url) for _ in range(_ASKED))) == ["abc"] * _ASKED
        now = one.workers()
        one.process.kill()
        await eventually(lambda: not any(psutil.pid_exists(worker) for worker in now))


async def test_on_sigterm_each_answers_what_it_has_to_its_end_and_none_is_left() -> None:
    async with served() as one:
        workers = one.workers()
        one.compute.flowing.clear()
        asking = [asyncio.create_task(ask(one.url)) for _ in range(8)]
        await eventually(lambda: len(one.compute.submitted) == 8)
        one.process.send_signal(signal.SIGTERM)
        await until_readyz(one, 503)
        one.compute.flowing.set()
        assert await asyncio.gather(*asking) == ["abc"] * 8
        assert await one.process.wait() == 0
        assert not any(psutil.pid_exists(worker) for worker in workers)


async def test_an_address_that_is_taken_is_named_before_anything_is_started(tmp_path: Path) -> None:
    compute = FakeCompute()
    await compute.start()
    async with gateway_process(workers="2", listen=compute.target, grpc_listen="127.0.0.1:0") as process:
        _, log = await process.communicate()
    assert process.returncode == 1
    assert f"gateway: cannot listen on {compute.target}".encode() in log
    assert b"worker processes" not in log
    await compute.kill()


async def test_what_keeps_a_worker_from_starting_is_said_once_and_ends_all(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("no key\n")
    async with gateway_process(workers="1", api_keys_file=str(keys)) as process:
        _, alone = await process.communicate()
    settings = {"listen": "127.0.0.1:0", "grpc_listen": "127.0.0.1:0", "api_keys_file": str(keys)}
    async with gateway_process(workers="2", **settings) as process:
        _, log = await process.communicate()
    assert process.returncode == 1
    assert alone.strip().splitlines()[-1] in log
