"""All four services as processes, with certificates on every connection: answers, strangers, and certificates that are replaced under load."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import grpc
import pytest

from tests.e2e.pods import Pods, PodsTls, Stage, running_pods
from tests.fakes.certificates import Authority, client_end
from tests.ports import free_port
from triserve.rpc.channel import open_channel
from triserve.rpc.tls.certificate import CertificateFiles
from triserve.v1 import tokenizer_pb2, tokenizer_pb2_grpc

TINY = Path(__file__).parents[1] / "tiny_model"
STAGES: tuple[Stage, ...] = ("tokenizer", "sampler", "compute")
CLIENTS = {"tokenizer": "gateway", "sampler": "compute", "compute": "gateway"}
BODY = {"prompt": "The river", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}


class Certified:
    """The certificates of everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder)
        self.of = {name: self.authority.files(name) for name in ("gateway", *STAGES)}
        self.door = self.authority.files("127.0.0.1", with_ca=False)
        # Of replicas there are two in the end, which cannot listen on the same port.
        self.ports = {name: free_port() for name in self.of if name != "compute"}

    def variables(self) -> dict[str, dict[str, str]]:
        """Of each service. The metrics are where probes ask, who show no certificate."""
        found = {name: _variables(f"{name.upper()}_TLS", files) for name, files in self.of.items()}
        for name, variables in found.items():
            variables[f"{name.upper()}_REQUIRE_TLS"] = "true"
        for name, port in self.ports.items():
            found[name][f"{name.upper()}_METRICS_LISTEN"] = f"127.0.0.1:{port}"
        found["gateway"] |= _variables("GATEWAY_HTTP_TLS", self.door)
        return found

    def for_tests(self) -> PodsTls:
        """As the stages' clients speak to them."""
        return PodsTls({stage: client_end(self.of[CLIENTS[stage]], stage) for stage in STAGES}, self.authority.ca_file)

    def replace_all(self) -> None:
        """Everything is of another authority from now on."""
        self.authority = Authority(self.folder)
        for name, files in self.of.items():
            self.authority.put(files, name)
        self.authority.put(self.door, "127.0.0.1")


def _variables(prefix: str, files: CertificateFiles) -> dict[str, str]:
    found = {f"{prefix}_CERT_FILE": str(files.cert), f"{prefix}_KEY_FILE": str(files.key)}
    return found if files.ca is None else {**found, f"{prefix}_CA_FILE": str(files.ca)}


async def text_of(pods: Pods) -> str:
    """A whole answer."""
    async with pods.session() as session, session.post("/v1/completions", json=BODY) as response:
        assert response.status == 200, await response.text()
        return await response.text()


async def test_every_connection_is_certified_and_outlives_its_certificates(tmp_path: Path) -> None:
    certified = Certified(tmp_path)
    async with running_pods(certified.variables(), tls=certified.for_tests()) as pods:
        await asyncio.gather(*(pods.add(stage, TINY) for stage in STAGES))
        await pods.until_ready()
        assert (await text_of(pods)).endswith("data: [DONE]\n\n")
        await strangers_are_refused(pods, certified)
        await operators_are_served(pods, certified)

        async with pods.session() as session, session.post("/v1/completions", json=BODY) as response:
            await response.content.readuntil(b"data: ")
            certified.replace_all()
            pods.tls = certified.for_tests()
            # It speaks to a sampler that has new certificates, and the gateway to it, as soon as it is found.
            newcomer = await pods.add("compute", TINY)
            assert (await response.text()).endswith("data: [DONE]\n\n")
        (old, _) = pods.of("compute")
        await pods.remove(old)
        assert (await text_of(pods)).endswith("data: [DONE]\n\n")
        assert pods.of("compute") == [newcomer]
        async with aiohttp.ClientSession() as session:
            for port in certified.ports.values():
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    assert response.status == 200


async def strangers_are_refused(pods: Pods, certified: Certified) -> None:
    """A sampler's certificate is good, and no tokenizer's business; that is counted."""
    (tokenizer,) = pods.of("tokenizer")
    async with open_channel(tokenizer.address, client_end(certified.of["sampler"], "tokenizer")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await tokenizer_pb2_grpc.TokenizerServiceStub(channel).GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{certified.ports['tokenizer']}/metrics") as response:
        assert 'triserve_tls_refused_total{reason="peer"} 1.0' in await response.text()


async def operators_are_served(pods: Pods, certified: Certified) -> None:
    """`triserve pin` speaks to a replica as a gateway does."""
    (compute,) = pods.of("compute")
    assert pods.tls is not None
    files = certified.of["gateway"]
    shown = ["--compute-cert", str(files.cert), "--compute-key", str(files.key), "--compute-ca", str(files.ca)]
    trusted = ["--url", pods.url, "--ca", str(pods.tls.ca_file)]
    command = ["pin", *trusted, "--system", "Be brief. " * 20, "--compute", compute.address, *shown]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    assert "tokens pinned" in output.decode()
