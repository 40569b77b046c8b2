"""Peers that break the contract in every way the schema allows and in some it does not; innocent requests beside them are answered, byte for byte."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.service import GatewayService
from gateway.settings import Settings as GatewaySettings
from sampler_svc.service import SamplerService
from sampler_svc.settings import Settings as SamplerSettings
from tests.fakes.compute_replica import SAMPLED, Replica, submission, until
from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_sampler import FakeSampler
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import eventually
from tests.fakes.hostile_messages import hostile_bytes
from tests.fakes.hostile_peers import FaultsOfOurs, call_all, send_all, to_bytes
from tests.fakes.hostile_stages import Deed, HostileCompute, HostileSampler, HostileTokenizer, deed, deeds, done
from tests.fakes.sampler_tokenizers import byte_tokenizer
from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.service import TokenizerService
from tokenizer_svc.settings import Settings as TokenizerSettings
from triserve.rpc.channel import open_channel
from triserve.rpc.fingerprint import fingerprint_of
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2, sampler_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
FINISHED = compute_pb2.REQUEST_OUTCOME_FINISHED
# Each example is a whole pipeline; drawing messages is slow on a busy machine, and no fault.
BOUNDED = settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
PREFIX = "/triserve.v1."
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a scenario, and finds no fault of ours in the log."""
    # What earlier tests left is told of now, not in the midst of these.
    gc.collect()
    with asyncio.Runner() as runner:

        def run_one(scenario: Coroutine[Any, Any, None]) -> None:
            with FaultsOfOurs() as faults:
                runner.run(asyncio.wait_for(scenario, PATIENCE_S))
            assert not faults, "\n".join(faults)

        yield run_one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer's ids are bytes."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text("{}")
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


async def beside_a_hostile_sampler(folder: Path, deeds: Sequence[Deed]) -> None:
    replica = Replica(folder)
    async with HostileSampler(replica.fingerprint, deeds).server as hostile:
        try:
            honest = FakeSampler(replica.fingerprint)
            replica.samplers.append(honest)
            await replica.start(num_samplers=0, samplers=(await honest.start(), hostile.target), sizes={"max_running_requests": 8})
            await replica.ready()
            await until(lambda: bool(honest.hellos))
            gateway = await replica.gateway()
            for wave in range(3):
                numbers = range(6 * wave, 6 * wave + 6)
                sampling = [SAMPLED if number % 2 else common_pb2.SamplingParams(temperature=0) for number in numbers]
                await gateway.send(
                    submit=[submission(one, [one % 8, 2], 5, sampling=how) for one, how in zip(numbers, sampling, strict=True)]
                )
                await gateway.end_of(*numbers)
            innocent = {opening.gateway_request for frame in honest.frames for opening in frame.open}
            assert innocent
            for number in innocent:
                assert gateway.ended[number].outcome == FINISHED, gateway.ended[number]
                assert gateway.tokens[number] == replica.model.greedy_answer([number % 8, 2], 5)
            await replica.idle()
            assert gateway.status is None
        finally:
            await replica.stop()


@BOUNDED
@given(deeds(sampler_pb2.SampleResponse))
def test_a_hostile_sampler_harms_no_request_of_another(run: Run, folder: Path, deeds: list[Deed]) -> None:
    run(beside_a_hostile_sampler(folder, deeds))


async def beside_a_hostile_gateway(folder: Path, items: Sequence[bytes], calls: Sequence[tuple[str, bytes]], greets: bool) -> None:
    replica = Replica(folder)
    try:
        await replica.start(sizes={"max_running_requests": 8, "max_waiting_requests": 4000, "num_pages": 200})
        await replica.ready()
        gateway = await replica.gateway()
        target = f"127.0.0.1:{replica.port}"
        hello = compute_pb2.GenerateRequest(hello=compute_pb2.GatewayHello(gateway_name="g", fingerprint=replica.fingerprint))
        innocents_end = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(
                send_all(target, f"{PREFIX}ComputeService/Generate", [hello, *items] if greets else items, until=innocents_end)
            )
            group.create_task(call_all(target, calls))
            numbers = range(8)
            await gateway.send(submit=[submission(one, [one, 2], 6, sampling=SAMPLED if one % 2 else None or GREEDY) for one in numbers])
            await gateway.end_of(*numbers)
            innocents_end.set()
        for number in numbers:
            assert gateway.ended[number].outcome == FINISHED, gateway.ended[number]
            assert gateway.tokens[number] == replica.model.greedy_answer([number, 2], 6)
        await replica.ready()
        assert gateway.status is None
    finally:
        await replica.stop()


GREEDY = common_pb2.SamplingParams(temperature=0)
COMPUTE_CALLS = {
    "ComputeService/GetComputeInfo": compute_pb2.GetComputeInfoRequest,
    "PrefixCacheService/PinPrefix": compute_pb2.PinPrefixRequest,
    "PrefixCacheService/UnpinPrefix": compute_pb2.UnpinPrefixRequest,
    "PrefixCacheService/GetPrefixStats": compute_pb2.GetPrefixStatsRequest,
}


def calls(methods: dict[str, type[Any]]) -> st.SearchStrategy[list[tuple[str, bytes]]]:
    """Single calls of some methods."""
    return st.lists(st.one_of([st.tuples(st.just(PREFIX + method), hostile_bytes(kind)) for method, kind in methods.items()]), max_size=4)


@BOUNDED
@given(st.lists(hostile_bytes(compute_pb2.GenerateRequest), max_size=8), calls(COMPUTE_CALLS), st.integers(0, 4).map(bool))
def test_a_hostile_gateway_harms_no_request_of_another(
    run: Run, folder: Path, items: list[bytes], calls: list[tuple[str, bytes]], greets: bool
) -> None:
    run(beside_a_hostile_gateway(folder, items, calls, greets))


TEXTS = ["one", "two words", "Grüße 🙂", "x" * 500]


async def encoded(channel: Any) -> list[list[int]]:
    """Ids of some texts, asked on a stream."""
    call = tokenizer_pb2_grpc.TokenizerServiceStub(channel).Tokenize()
    for number, text in enumerate(TEXTS, 1):
        await call.write(
            tokenizer_pb2.TokenizeRequest(request=number, encode=tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=text)))
        )
    answers = {}
    for _ in TEXTS:
        answer = await call.read()
        answers[answer.request] = list(answer.encoded.token_ids)
    call.cancel()
    return [answers[number] for number in range(1, len(TEXTS) + 1)]


async def beside_a_hostile_client_of_the_tokenizer(target: str, items: Sequence[bytes], calls: Sequence[tuple[str, bytes]]) -> None:
    async with open_channel(target) as channel:
        alone = await encoded(channel)
        assert all(alone)
        async with asyncio.TaskGroup() as group:
            group.create_task(send_all(target, f"{PREFIX}TokenizerService/Tokenize", items))
            group.create_task(call_all(target, calls))
            assert await encoded(channel) == alone
        assert await encoded(channel) == alone


@pytest.fixture(scope="module")
def tokenizer(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a tokenizer listens; it takes longer to start than many messages do."""
    services: list[TokenizerService] = []

    async def start() -> None:
        folder = write_model_folder(tmp_path_factory.mktemp("model") / "m")
        services.append(TokenizerService(TokenizerSettings(model=folder, listen="127.0.0.1:0")))
        await services[0].start()

    run(start())
    yield f"127.0.0.1:{services[0].port}"
    run(services[0].stop())


TOKENIZER_CALLS = {
    "TokenizerService/GetTokenizerInfo": tokenizer_pb2.GetTokenizerInfoRequest,
    "TokenizerService/Encode": tokenizer_pb2.EncodeRequest,
    "TokenizerService/Decode": tokenizer_pb2.DecodeRequest,
}


@BOUNDED
@given(st.lists(hostile_bytes(tokenizer_pb2.TokenizeRequest), max_size=10), calls(TOKENIZER_CALLS))
def test_a_hostile_gateway_harms_no_text_of_another(run: Run, tokenizer: str, items: list[bytes], calls: list[tuple[str, bytes]]) -> None:
    run(beside_a_hostile_client_of_the_tokenizer(tokenizer, items, calls))


async def sampled(target: str, fingerprint: common_pb2.Fingerprint) -> list[bytes]:
    """What a sampler makes of a small answer."""
    async with open_channel(target) as channel:
        call: Any = sampler_pb2_grpc.SamplerServiceStub(channel).Sample()
        await call.write(
            sampler_pb2.SampleRequest(hello=sampler_pb2.ComputeHello(compute_name="c", fingerprint=fingerprint, logits_width=257))
        )
        await call.read()
        stopping = common_pb2.StoppingParams(max_tokens=3)
        opening = sampler_pb2.OpenRequest(request=1, gateway=1, gateway_request=1, prompt_token_ids=[1], sampling=GREEDY, stopping=stopping)
        answers = []
        for position, token in enumerate(b"abc"):
            row = sampler_pb2.SampleRequest(
                open=[opening] if not position else [],
                frame=position + 1,
                request=[1],
                position=[position],
                token=[token],
            )
            await call.write(row)
            answers.append((await call.read()).SerializeToString())
        call.cancel()
        return answers


async def beside_a_hostile_replica(folder: Path, items: Sequence[bytes]) -> None:
    service = SamplerService(SamplerSettings(model=folder, listen="127.0.0.1:0", drain_timeout_s=0.0))
    await service.start()
    target = f"127.0.0.1:{service.port}"
    fingerprint = fingerprint_of(folder)
    hello = sampler_pb2.SampleRequest(hello=sampler_pb2.ComputeHello(compute_name="h", fingerprint=fingerprint, logits_width=257))
    try:
        alone = await sampled(target, fingerprint)
        async with asyncio.TaskGroup() as group:
            group.create_task(send_all(target, f"{PREFIX}SamplerService/Sample", [hello, *items]))
            assert await sampled(target, fingerprint) == alone
        assert await sampled(target, fingerprint) == alone
    finally:
        await service.stop()


@st.composite
def frames(draw: st.DrawFn) -> list[bytes]:
    """Frames in their order: some that open requests and have rows of them with columns that fit, spoilt here and there."""
    sent: list[bytes] = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        rows = draw(st.lists(st.integers(1, 3), max_size=3))
        count = len(rows)
        counts = draw(st.lists(st.sampled_from([1, 1, 0, 2]), min_size=count, max_size=count))
        proper = sampler_pb2.SampleRequest(
            frame=number,
            open=[
                sampler_pb2.OpenRequest(request=one, gateway=1, gateway_request=one, stopping=common_pb2.StoppingParams(max_tokens=9))
                for one in draw(st.sets(st.integers(1, 3), max_size=2))
            ],
            request=rows,
            position=draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)),
            num_tokens=counts,
            token=draw(st.lists(st.integers(0, 256), min_size=sum(counts), max_size=sum(counts))),
            logits=[sampler_pb2.RowLogits(row=row, logits=bytes(4 * 257)) for row, number in enumerate(counts) if number == 0],
        )
        sent.append(to_bytes(done(draw(st.one_of(st.just({}), deed(sampler_pb2.SampleRequest))), proper)))
    return sent


@BOUNDED
@given(frames())
def test_a_hostile_replica_harms_no_answer_of_another(run: Run, folder: Path, items: list[bytes]) -> None:
    run(beside_a_hostile_replica(folder, items))


async def behind_a_gateway_with_hostile_stages(tokenizer_deeds: Sequence[Deed], info: Deed, compute_deeds: Sequence[Deed]) -> None:
    bad_tokenizer, bad_compute = HostileTokenizer(tokenizer_deeds, info), HostileCompute(compute_deeds)
    tokenizer, compute = FakeTokenizer(), FakeCompute()
    async with AsyncExitStack() as stack:
        for fake in (tokenizer, compute, bad_tokenizer.fake, bad_compute.fake):
            await fake.start()
            stack.push_async_callback(fake.kill)
        for hostile in (bad_tokenizer.server, bad_compute.server):
            await stack.enter_async_context(hostile)
        gateway = GatewayService(
            GatewaySettings(
                listen="127.0.0.1:0",
                grpc_listen="127.0.0.1:0",
                tokenizers=(tokenizer.target, bad_tokenizer.server.target),
                computes=(compute.target, bad_compute.server.target),
                drain_timeout_s=0.0,
                cache=False,
            )
        )
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        session = await stack.enter_async_context(aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}"))
        await eventually(lambda: gateway.gateway.fleet.ready)
        for wave in range(3):
            texts = [f"{wave}{letter}" for letter in "abcdef"]
            answers = await asyncio.gather(*(complete(session, text) for text in texts))
            told = {ask.encode.text.text for ask in tokenizer.asked}
            served = {tuple(one.token_ids) for one in compute.submitted}
            for text, (status, answer) in zip(texts, answers, strict=True):
                if text in told and tuple(text.encode()) in served:
                    assert (status, answer) == (200, text), answer


async def complete(session: aiohttp.ClientSession, text: str) -> tuple[int, Any]:
    async with session.post("/v1/completions", json={"prompt": text, "temperature": 0}) as response:
        body = await response.json()
        return response.status, body["choices"][0]["text"] if response.status == 200 else body


@BOUNDED
@given(
    deeds(tokenizer_pb2.TokenizeResponse, most=6),
    st.one_of(st.just({}), deed(tokenizer_pb2.GetTokenizerInfoResponse)),
    deeds(compute_pb2.GenerateResponse, most=6),
)
def test_hostile_stages_harm_no_request_that_others_serve(
    run: Run, tokenizer_deeds: list[Deed], info: Deed, compute_deeds: list[Deed]
) -> None:
    run(behind_a_gateway_with_hostile_stages(tokenizer_deeds, info, compute_deeds))
