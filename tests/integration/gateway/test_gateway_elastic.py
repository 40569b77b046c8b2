"""Stages grow and shrink behind a name: newcomers serve, those that vanish finish what they have, and no request is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import aiohttp

from tests.fakes.dns_server import DnsServer, dns_server
from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.ports import free_port

Fake: TypeAlias = FakeTokenizer | FakeCompute
MOST = 8


class Stage:
    """Processes of one stage behind a name: each has an address of its own and the port of all."""

    def __init__(self, kind: type[Fake], name: str, network: int, port: int, dns: DnsServer) -> None:
        self.processes: list[Fake] = []
        self._kind, self._name, self._network, self._port, self._dns = kind, name, network, port, dns

    @property
    def target(self) -> str:
        """As the gateway is told of it."""
        return f"dns://{self._dns.authority}/{self._name}:{self._port}"

    async def scale(self, count: int) -> None:
        """Has so many processes. Those that go vanish from DNS first, and end when they have nothing left, as pods do."""
        while len(self.processes) < count:
            address = f"127.{self._network}.0.{len(self.processes) + 1}:{self._port}"
            process = self._kind(listen=address)
            await process.start()
            self.processes.append(process)
        leaving, self.processes = self.processes[count:], self.processes[:count]
        self.publish()
        for process in leaving:
            await process.server.health.set_ready(False)
            await process.server.stop(20)

    def publish(self) -> None:
        """Tells DNS who is there."""
        self._dns.records[self._name, "A"] = [process.host for process in self.processes]


@asynccontextmanager
async def elastic_fleet() -> AsyncIterator[tuple[GatewayFleet, Stage, Stage, DnsServer]]:
    """A gateway that finds its stages by name."""
    tokenizer_port, compute_port = free_port(), free_port()
    async with dns_server() as dns:
        tokenizers = Stage(FakeTokenizer, "tokenizer.test", 1, tokenizer_port, dns)
        computes = Stage(FakeCompute, "compute.test", 2, compute_port, dns)
        await tokenizers.scale(1)
        await computes.scale(1)
        addresses = {"tokenizers": (tokenizers.target,), "computes": (computes.target,)}
        try:
            async with running_fleet(tokenizers=[], computes=[], addresses=addresses, dns_interval_s=0.1) as fleet:
                await eventually(lambda: fleet.service.gateway.fleet.ready, "each stage is found")
                yield fleet, tokenizers, computes, dns
        finally:
            for process in (*tokenizers.processes, *computes.processes):
                await process.kill()


class Load:
    """Clients that ask one question after the other, and stream the answers."""

    def __init__(self, url: str, clients: int) -> None:
        self.answered = 0
        self.wrong: list[Any] = []
        self._url = url
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(clients)]
        self._ending = False

    async def _ask(self) -> None:
        async with aiohttp.ClientSession(self._url) as session:
            while not self._ending:
                async with session.post("/v1/completions", json={"prompt": "abc", "stream": True}) as response:
                    body = await response.text()
                if response.status != 200 or '"text":"c"' not in body or not body.endswith("data: [DONE]\n\n"):
                    self.wrong.append((response.status, body))
                self.answered += 1

    async def end(self) -> None:
        """Lets every client have its last answer."""
        self._ending = True
        await asyncio.gather(*self._tasks)


@contextmanager
def no_wrong_answers(load: Load) -> Iterator[None]:
    """Says at once what a client got wrongly."""
    yield
    assert not load.wrong, load.wrong[0]


async def test_each_stage_grows_from_one_to_eight_and_shrinks_to_two_under_load_and_no_request_is_lost() -> None:
    async with elastic_fleet() as (fleet, tokenizers, computes, _):
        gateway = fleet.service.gateway.fleet
        load = Load(fleet.url, clients=8)
        with no_wrong_answers(load):
            await asyncio.gather(tokenizers.scale(MOST), computes.scale(MOST))
            await eventually(lambda: sum(peer.ready for peer in gateway.peers) == 2 * MOST, "newcomers are connected")
            grown = [*tokenizers.processes, *computes.processes]
            await eventually(lambda: all(_was_asked(process) for process in grown), "newcomers serve")
            await asyncio.gather(tokenizers.scale(2), computes.scale(2))
            await eventually(lambda: len(gateway.peers) == 4, "those that are gone are left")
            before = load.answered
            await eventually(lambda: load.answered > before + 20, "the rest serve")
            await load.end()


async def test_an_answer_of_a_replica_that_vanished_is_streamed_to_its_end_and_then_it_is_left() -> None:
    async with elastic_fleet() as (fleet, _, computes, _), aiohttp.ClientSession(fleet.url) as session:
        asking = await _held_by_two(fleet, computes, session)
        gateway = fleet.service.gateway.fleet
        (first, second) = computes.processes
        assert isinstance(second, FakeCompute)
        computes.processes = [first]
        computes.publish()
        await eventually(lambda: sum(peer.ready for peer in gateway.computes) == 1)
        assert len(gateway.computes) == 2, "what it holds ends there"
        second.flowing.set()
        await eventually(lambda: len(gateway.computes) == 1)
        first.flowing.set()
        assert await asyncio.gather(*asking) == [(200, "abc")] * 2
        assert not second.cancelled
        await second.kill()


async def test_a_process_that_is_found_again_before_it_was_left_stays() -> None:
    async with elastic_fleet() as (fleet, _, computes, _), aiohttp.ClientSession(fleet.url) as session:
        asking = await _held_by_two(fleet, computes, session)
        gateway, both = fleet.service.gateway.fleet, computes.processes
        peers = gateway.computes
        computes.processes = both[:1]
        computes.publish()
        await eventually(lambda: sum(peer.ready for peer in gateway.computes) == 1)
        computes.processes = both
        computes.publish()
        await eventually(lambda: sum(peer.ready for peer in gateway.computes) == 2)
        assert gateway.computes == peers
        for process in both:
            process.flowing.set()
        assert await asyncio.gather(*asking) == [(200, "abc")] * 2


async def test_while_dns_is_silent_everything_serves_on() -> None:
    async with elastic_fleet() as (fleet, _, _, dns), aiohttp.ClientSession(fleet.url) as session:
        dns.mood = "failing"
        before = fleet.service.gateway.fleet.lookup_failures
        await eventually(lambda: fleet.service.gateway.fleet.lookup_failures > before + 2)
        assert await _answer(session) == (200, "abc")
        async with session.get("/metrics") as response:
            assert "triserve_dns_failures_total" in await response.text()


async def _held_by_two(fleet: GatewayFleet, computes: Stage, session: aiohttp.ClientSession) -> list[asyncio.Task[tuple[int, str]]]:
    """Two requests, each held back by a replica of its own."""
    await computes.scale(2)
    await eventually(lambda: sum(peer.ready for peer in fleet.service.gateway.fleet.computes) == 2)
    for process in computes.processes:
        process.flowing.clear()
    asking = [asyncio.create_task(_answer(session)) for _ in range(2)]
    await eventually(lambda: all(_was_asked(process) for process in computes.processes))
    return asking


def _was_asked(process: Fake) -> bool:
    return bool(process.submitted if isinstance(process, FakeCompute) else process.asked)


async def _answer(session: aiohttp.ClientSession) -> tuple[int, str]:
    async with session.post("/v1/completions", json={"prompt": "abc"}) as response:
        return response.status, (await response.json())["choices"][0]["text"]


async def test_the_last_process_of_a_stage_is_not_left_before_another_works() -> None:
    async with elastic_fleet() as (fleet, tokenizers, computes, _):
        gateway = fleet.service.gateway.fleet
        load = Load(fleet.url, clients=2)
        for stage in (computes, tokenizers):
            old = stage.processes
            await stage.scale(2)
            stage.processes = stage.processes[1:]
            # One answer of DNS has the newcomer and no longer the old one.
            stage.publish()
            await eventually(lambda stage=stage: _was_asked(stage.processes[0]))  # type: ignore[misc]
            await eventually(lambda: len(gateway.peers) == 2)
            await old[0].kill()
        await load.end()
        assert not load.wrong, load.wrong[0]


async def test_a_stage_of_which_nothing_is_left_in_dns_serves_as_long_as_it_is_there() -> None:
    async with elastic_fleet() as (fleet, _, computes, dns), aiohttp.ClientSession(fleet.url) as session:
        dns.records["compute.test", "A"] = []
        before = fleet.service.gateway.fleet.lookup_failures
        await eventually(lambda: fleet.service.gateway.fleet.lookup_failures > before + 2)
        assert await _answer(session) == (200, "abc")
        assert len(computes.processes) == 1
