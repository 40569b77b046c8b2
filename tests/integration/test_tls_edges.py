"""The connections between stages over TLS: who is served, who is refused on which side and with which words, and files that are replaced meanwhile."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.certificates import Authority, client_end, server_end, settings_of
from tests.fakes.compute_replica import Replica
from tests.fakes.fake_compute import FakeCompute
from tests.fakes.fake_tokenizer import FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.errors import PeerRefused, from_rpc_error
from triserve.rpc.server import ServiceServer
from triserve.rpc.tls.certificate import CertificateFiles
from triserve.rpc.tls.ends import ServerTls
from triserve.v1 import tokenizer_pb2, tokenizer_pb2_grpc

Stage = Literal["tokenizer", "compute", "sampler"]
STAGES: tuple[Stage, ...] = ("tokenizer", "compute", "sampler")
CLIENT: dict[Stage, str] = {"tokenizer": "gateway", "compute": "gateway", "sampler": "compute"}
# A connection that does not come about is counted after it.
SOON_S = 0.1


@dataclass
class Edge:
    """A connection between two stages that comes about, or does not."""

    server: ServiceServer
    connected: Callable[[], bool]


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def edge(stage: Stage, tls: ServerTls | None, client: CertificateFiles | None, ours: Authority, folder: Path) -> AsyncIterator[Edge]:
    """A real client of a stage and a fake of the stage.

    Args:
        stage: That is called.
        tls: What it shows and asks for.
        client: What the client shows and checks against.
        ours: Of whatever else the client has to call, where nothing is wrong.
        folder: For a model's files.
    """
    options: dict[str, Any] = {"tls": tls, "handshake_timeout_s": SOON_S}
    if stage == "sampler":
        replica = Replica(model_folder(folder), sampler_options=options)
        try:
            await replica.start(**settings_of(client))
            yield Edge(replica.samplers[0].server, lambda: replica.running.health.ready)
        finally:
            await replica.stop()
        return
    other = "compute" if stage == "tokenizer" else "tokenizer"
    well = {"tls": server_end(ours.files(other), "gateway", "sampler") if client is not None else None}
    tokenizers = [FakeTokenizer(**(options if stage == "tokenizer" else well))]
    computes = [FakeCompute(**(options if stage == "compute" else well))]
    async with running_fleet(tokenizers=tokenizers, computes=computes, wait=False, **settings_of(client)) as fleet:
        fake = fleet.tokenizer if stage == "tokenizer" else fleet.compute
        peers = fleet.service.gateway.fleet
        yield Edge(fake.server, lambda: any(peer.ready for peer in (peers.tokenizers if stage == "tokenizer" else peers.computes)))


def model_folder(folder: Path) -> Path:
    """Files that have a fingerprint, which is all that a fake engine needs of them."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    return model


class Case(NamedTuple):
    """Something is wrong with one of the two ends."""

    # From our authority, another one, the stage's name and its client's: what the stage has, and what the client has.
    server: Callable[[Authority, Authority, str], CertificateFiles | None]
    client: Callable[[Authority, Authority, str], CertificateFiles | None]
    # In the client's log.
    words: str


def good(ours: Authority, theirs: Authority, name: str) -> CertificateFiles:
    return ours.files(name)


def of_another_ca(ours: Authority, theirs: Authority, name: str) -> CertificateFiles:
    files, wrong = ours.files(name), theirs.files(name)
    return CertificateFiles(cert=wrong.cert, key=wrong.key, ca=files.ca)


def expired(ours: Authority, theirs: Authority, name: str) -> CertificateFiles:
    return ours.files(name, expired=True)


def of_another_name(ours: Authority, theirs: Authority, name: str) -> CertificateFiles:
    return ours.files("somebody-else")


def none(ours: Authority, theirs: Authority, name: str) -> None:
    return None


HUNG_UP = "it is not reachable: it closed the connection in the handshake, as one does that refuses our certificate, or speaks no TLS"
CASES = {
    "client of another CA": Case(good, of_another_ca, HUNG_UP),
    "client expired": Case(good, expired, HUNG_UP),
    "client in plain text": Case(good, none, "it is not reachable: it closed the connection at once, as one does that speaks TLS"),
    "server of another CA": Case(
        of_another_ca, good, "it is not reachable: its certificate is refused: unable to get local issuer certificate"
    ),
    "server expired": Case(expired, good, "it is not reachable: its certificate is refused: certificate has expired"),
    "server of another name": Case(of_another_name, good, "it is not reachable: its certificate is not of {stage}"),
    "server in plain text": Case(none, good, "it is not reachable: it speaks no TLS"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("stage", STAGES)
async def test_a_connection_with_something_wrong_is_refused_said_and_counted(
    stage: Stage, case: Case, ours: Authority, theirs: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = case.server(ours, theirs, stage)
    tls = server_end(files, CLIENT[stage]) if files is not None else None
    with caplog.at_level(logging.INFO):
        async with edge(stage, tls, case.client(ours, theirs, CLIENT[stage]), ours, tmp_path) as one:
            await eventually(lambda: f"no session with {stage}" in caplog.text, "the client says that there is no session")
            if tls is not None:
                await eventually(lambda: one.server.refused_handshakes >= 1, "the server counts it")
                assert f"port {one.server.port}: 1 connections did not get past TLS" in caplog.text or one.server.refused_handshakes > 1
            assert not one.connected()
            assert one.server.refused_peers == 0
    (line, *_) = [record.getMessage() for record in caplog.records if f"no session with {stage}" in record.getMessage()]
    assert case.words.format(stage=stage) in line


@pytest.mark.parametrize("stage", STAGES)
async def test_a_good_certificate_of_a_stage_that_has_no_business_here_is_refused_said_and_counted(
    stage: Stage, ours: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = server_end(ours.files(stage), CLIENT[stage])
    with caplog.at_level(logging.WARNING):
        async with edge(stage, tls, ours.files("Sampler", "10.1.2.3"), ours, tmp_path) as one:
            await eventually(lambda: one.server.refused_peers >= 1, "the server counts it")
            await eventually(lambda: f"no session with {stage}" in caplog.text, "the client says that there is no session")
            assert not one.connected()
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.endswith(f"its certificate is of sampler, let in is {CLIENT[stage]}") for line in lines)
    assert any(line.endswith(f"the client's certificate is of sampler, let in is {CLIENT[stage]}") for line in lines)


@pytest.mark.parametrize("stage", STAGES)
async def test_of_several_names_one_is_enough_and_case_does_not_matter(stage: Stage, ours: Authority, tmp_path: Path) -> None:
    tls = server_end(ours.files("other", stage.upper()), "operator", CLIENT[stage])
    async with edge(stage, tls, ours.files("x.example.org", CLIENT[stage].title()), ours, tmp_path) as one:
        await eventually(one.connected, "they are connected")


async def test_a_client_without_a_certificate_gets_nowhere(ours: Authority) -> None:
    fake = FakeTokenizer(tls=server_end(ours.files("tokenizer"), "gateway"), handshake_timeout_s=SOON_S)
    await fake.start()
    credentials = grpc.ssl_channel_credentials(ours.ca.cert_pem.bytes())
    options = (("grpc.ssl_target_name_override", "tokenizer"),)
    async with grpc.aio.secure_channel(fake.target, credentials, options) as channel:
        assert not await is_ready(channel, "", timeout_s=20)
    await eventually(lambda: fake.server.refused_handshakes == 1, "the server counts it")
    await fake.kill()


async def test_health_reflection_and_unknown_methods_tell_a_stranger_nothing(ours: Authority) -> None:
    fake = FakeTokenizer(tls=server_end(ours.files("tokenizer"), "gateway"))
    await fake.start()
    async with open_channel(fake.target, client_end(ours.files("sampler"), "tokenizer")) as channel:
        assert not await is_ready(channel, "", timeout_s=20)
        listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        for call in (listing.read(), stub.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest()), stub.Tokenize().read()):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert type(from_rpc_error(refused.value, peer="tokenizer")) is PeerRefused
        unknown: Any = channel.unary_unary("/triserve.v1.TokenizerService/Nothing")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await unknown(b"")
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert fake.server.refused_peers == 4
    await fake.kill()


@asynccontextmanager
async def fleet_over_tls(ours: Authority, **options: Any) -> AsyncIterator[tuple[GatewayFleet, dict[str, CertificateFiles]]]:
    files = {name: ours.files(name) for name in ("gateway", "tokenizer", "compute")}
    tokenizer = FakeTokenizer(tls=server_end(files["tokenizer"], "gateway"))
    compute = FakeCompute(tls=server_end(files["compute"], "gateway"))
    async with running_fleet(tokenizers=[tokenizer], computes=[compute], **settings_of(files["gateway"]), **options) as fleet:
        yield fleet, files


def chat(session: aiohttp.ClientSession) -> Any:
    return session.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}], "stream": True})


async def test_an_answer_streams_from_a_gateway_whose_stages_speak_tls(ours: Authority) -> None:
    async with fleet_over_tls(ours) as (fleet, _), aiohttp.ClientSession(fleet.url) as session:
        async with chat(session) as response:
            text = await response.text()
        assert response.status == 200 and text.endswith("data: [DONE]\n\n") and '"content":"u"' in text
        assert [fake.server.refused_peers + fake.server.refused_handshakes for fake in (fleet.tokenizer, fleet.compute)] == [0, 0]


async def test_an_answer_streams_from_a_replica_whose_samplers_and_gateways_speak_tls(ours: Authority, tmp_path: Path) -> None:
    replica = Replica(
        model_folder(tmp_path),
        tls=client_end(ours.files("gateway"), "compute"),
        sampler_options={"tls": server_end(ours.files("sampler"), "compute")},
    )
    try:
        await (await replica.start(**settings_of(ours.files("compute")))).ready()
        gateway = await replica.gateway()
        await gateway.submit(1, [1, 2, 3], 5)
        await gateway.end_of(1)
        assert gateway.tokens[1] == replica.model.greedy_answer([1, 2, 3], 5)
    finally:
        await replica.stop()


async def test_a_stream_outlives_the_certificates_it_began_with_and_new_connections_use_new_ones(
    ours: Authority, theirs: Authority
) -> None:
    async with fleet_over_tls(ours) as (fleet, files), aiohttp.ClientSession(fleet.url) as session:
        fleet.compute.flowing.clear()
        fleet.compute.let_through(1)
        before = client_end(ours.files("gateway"), "compute")
        async with chat(session) as response:
            await response.content.readuntil(b'"content":"u"')
            for name, one in files.items():
                theirs.put(one, name)
            async with open_channel(fleet.compute.target, client_end(theirs.files("gateway"), "compute")) as channel:
                assert await is_ready(channel, "triserve.v1.ComputeService", timeout_s=20)
            async with open_channel(fleet.compute.target, before) as channel:
                assert not await is_ready(channel, "triserve.v1.ComputeService", timeout_s=20)
            fleet.compute.flowing.set()
            assert (await response.text()).endswith("data: [DONE]\n\n")
        async with another_replica(fleet, files["compute"]), chat(session) as response:
            assert (await response.text()).endswith("data: [DONE]\n\n")


@asynccontextmanager
async def another_replica(fleet: GatewayFleet, files: CertificateFiles) -> AsyncIterator[None]:
    """Puts another replica in the place of the one there is, until the context ends."""
    await fleet.compute.kill()
    new = FakeCompute(listen=fleet.compute.target, tls=server_end(files, "gateway"))
    await new.start()
    try:
        await eventually(lambda: new.hellos and fleet.ready, "the gateway is connected to the new replica")
        yield
    finally:
        await new.kill()


async def test_a_broken_replacement_is_named_and_the_last_good_certificate_serves_on(
    ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_over_tls(ours) as (fleet, files):
        files["compute"].cert.write_bytes(files["compute"].cert.read_bytes()[:200])
        files["gateway"].key.write_bytes(ours.files("gateway").key.read_bytes())
        async with open_channel(fleet.compute.target, client_end(ours.files("gateway"), "compute")) as channel:
            assert await is_ready(channel, "triserve.v1.ComputeService", timeout_s=20)
        assert f"{files['compute'].cert} holds no certificate in PEM" in caplog.text
        # The gateway's own is looked at when it connects.
        async with another_replica(fleet, ours.files("compute")):
            pass
        assert (
            f"{files['gateway'].key} is not the key of the certificate in {files['gateway'].cert}; what was read before stays in use"
            in caplog.text
        )


@pytest.mark.parametrize(("listen", "is_loud"), [("127.0.0.1:0", False), ("localhost:0", False), ("0.0.0.0:0", True)])
async def test_plain_text_beyond_this_machine_is_said_loudly(listen: str, is_loud: bool, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTokenizer(listen)
    with caplog.at_level(logging.WARNING):
        await fake.start()
    await fake.kill()
    assert (f"LISTENING ON {listen} WITHOUT TLS" in caplog.text) is is_loud


async def test_with_tls_nothing_is_said(ours: Authority, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeTokenizer("0.0.0.0:0", tls=server_end(ours.files("tokenizer"), "gateway"))
    with caplog.at_level(logging.WARNING):
        await fake.start()
    await fake.kill()
    assert not caplog.records
