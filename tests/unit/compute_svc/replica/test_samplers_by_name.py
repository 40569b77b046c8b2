"""Samplers behind a name come and go: a newcomer gets new requests, one that vanishes ends those it has and is left."""

from __future__ import annotations

from compute_svc.replica.sampler_link import SamplerLink
from tests.fakes.compute_replica import SAMPLED, Replica, until
from tests.fakes.dns_server import DnsServer, dns_server
from tests.fakes.fake_sampler import FakeSampler
from tests.ports import free_port
from triserve.v1 import common_pb2, compute_pb2

NAME = "sampler.test"
OTHER_WEIGHTS = common_pb2.Fingerprint(tokenizer_sha256="ab" * 32)


async def _scaled(replica: Replica, dns: DnsServer, port: int, count: int, fingerprint: common_pb2.Fingerprint | None = None) -> None:
    """Starts samplers until there are so many, each at an address of its own."""
    while len(replica.samplers) < count:
        sampler = FakeSampler(fingerprint or replica.fingerprint)
        address = f"127.3.0.{len(replica.samplers) + 1}"
        await sampler.start(f"{address}:{port}")
        replica.samplers.append(sampler)
        dns.records.setdefault((NAME, "A"), []).append(address)


def _links(replica: Replica) -> list[SamplerLink]:
    samplers = replica.running._samplers
    assert samplers is not None, "the engine is there"
    return samplers.peers


def _opened(sampler: FakeSampler) -> int:
    return sum(len(frame.open) for frame in sampler.frames)


async def test_a_sampler_that_comes_gets_new_requests_and_one_that_vanishes_ends_those_it_has(replica: Replica) -> None:
    async with dns_server() as dns:
        port = free_port()
        await _scaled(replica, dns, port, 1)
        await replica.start(num_samplers=0, samplers=(f"dns://{dns.authority}/{NAME}:{port}",), dns_interval_s=0.1)
        await replica.ready()
        gateway = await replica.gateway()
        first = replica.samplers[0]
        first.may_answer.clear()
        await gateway.submit(1, [1, 2], 6, sampling=SAMPLED)
        await until(lambda: _opened(first) == 1)
        await _scaled(replica, dns, port, 2)
        second = replica.samplers[1]
        await until(lambda: sum(link.ready for link in _links(replica)) == 2)
        await gateway.submit(2, [1, 2], 6)
        (end,) = await gateway.end_of(2)
        assert (end.outcome, _opened(second)) == (compute_pb2.REQUEST_OUTCOME_FINISHED, 1)
        dns.records[NAME, "A"] = ["127.3.0.2"]
        await until(lambda: sum(link.ready for link in _links(replica)) == 1)
        await gateway.submit(3, [1, 2], 6)
        await gateway.end_of(3)
        assert (_opened(first), _opened(second), len(_links(replica))) == (1, 2, 2)
        first.may_answer.set()
        (end,) = await gateway.end_of(1)
        assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
        await until(lambda: len(_links(replica)) == 1)


async def test_a_sampler_of_another_model_gets_nothing_while_both_are_there(replica: Replica) -> None:
    async with dns_server() as dns:
        port = free_port()
        await _scaled(replica, dns, port, 1)
        await replica.start(num_samplers=0, samplers=(f"dns://{dns.authority}/{NAME}:{port}",), dns_interval_s=0.1)
        await replica.ready()
        await _scaled(replica, dns, port, 2, OTHER_WEIGHTS)
        await until(lambda: any("has tokenizer" in link.problem for link in _links(replica)))
        gateway = await replica.gateway()
        for number in range(4):
            await gateway.submit(number, [1, 2], 3)
        ends = await gateway.end_of(0, 1, 2, 3)
        assert {end.outcome for end in ends} == {compute_pb2.REQUEST_OUTCOME_FINISHED}
        assert not _opened(replica.samplers[1])
