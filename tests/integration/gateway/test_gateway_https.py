"""The gateway's doors over TLS: HTTP and gRPC for clients from outside, who show no certificate."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from aiohttp import web

from gateway.http.server import HttpServer
from tests.fakes.certificates import Authority, settings_of
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from tests.integration.cli.test_cli_client import triserve
from triserve.rpc.tls.certificate import CertificateFiles
from triserve.v1 import chat_pb2, chat_pb2_grpc, tokenizer_pb2

BODY = {"messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def files(ours: Authority) -> CertificateFiles:
    return ours.files("127.0.0.1", "localhost", with_ca=False)


@pytest.fixture
async def fleet(files: CertificateFiles) -> AsyncIterator[GatewayFleet]:
    async with running_fleet(**settings_of(files, "http_tls_")) as fleet:
        yield fleet


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca_file)


def https(fleet: GatewayFleet, authority: Authority) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"https://127.0.0.1:{fleet.service.port}", connector=aiohttp.TCPConnector(ssl=trusting(authority), force_close=True)
    )


@asynccontextmanager
async def tls_socket(port: int, context: ssl.SSLContext) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def shown_to(port: int, authority: Authority) -> bytes:
    """The certificate that a connection is shown."""
    async with tls_socket(port, trusting(authority)) as (_, writer):
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return shown


async def test_an_answer_streams_over_https(fleet: GatewayFleet, ours: Authority) -> None:
    async with https(fleet, ours) as session, session.post("/v1/chat/completions", json=BODY) as response:
        text = await response.text()
    assert response.status == 200 and text.endswith("data: [DONE]\n\n")


async def test_an_answer_streams_over_grpc_with_the_same_certificate(fleet: GatewayFleet, ours: Authority) -> None:
    credentials = grpc.ssl_channel_credentials(ours.ca.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{fleet.service.grpc_port}", credentials) as channel:
        message = tokenizer_pb2.ChatMessage(role="user", content="Hello")
        call = chat_pb2_grpc.ChatServiceStub(channel).Chat(chat_pb2.ChatRequest(messages=[message]))
        assert "".join([response.text async for response in call]) == "user: Hello\nassistant: "


async def test_http_1_1_is_agreed_on_and_tls_1_1_is_not(fleet: GatewayFleet, ours: Authority) -> None:
    context = trusting(ours)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with tls_socket(fleet.service.port, context) as (_, writer):
        spoken = writer.get_extra_info("ssl_object")
        assert spoken.selected_alpn_protocol() == "http/1.1"
        assert spoken.version() in ("TLSv1.2", "TLSv1.3")


async def test_a_client_that_trusts_another_ca_gets_nothing(fleet: GatewayFleet, theirs: Authority) -> None:
    async with https(fleet, theirs) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("/health")


async def test_a_client_that_leaves_in_the_midst_ends_its_request(fleet: GatewayFleet, ours: Authority) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    async with https(fleet, ours) as session:
        response = await session.post("/v1/chat/completions", json=BODY)
        await response.content.readuntil(b'"content":"u"')
        response.close()
        await eventually(lambda: fleet.compute.cancelled == [1], "compute was told")
    await eventually(lambda: fleet.active == 0 and fleet.service.num_connections == 0, "nothing is left")


async def test_a_client_that_closes_its_half_over_tls_has_left_and_nothing_is_complained_of(
    fleet: GatewayFleet, ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.compute.flowing.clear()
    body = b'{"messages": [{"role": "user", "content": "Hello"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    plain = socket.create_connection(("127.0.0.1", fleet.service.port))

    def speak() -> None:
        with trusting(ours).wrap_socket(plain, server_hostname="localhost") as spoken:
            spoken.sendall(head + body)
            # What says over TLS that no more comes.
            spoken.unwrap()

    await asyncio.to_thread(speak)
    await eventually(lambda: fleet.compute.cancelled == [1] or fleet.service.num_connections == 0, "the request has ended")
    await eventually(lambda: fleet.active == 0, "nothing is left")
    assert not caplog.records


async def test_a_replaced_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    fleet: GatewayFleet, files: CertificateFiles, ours: Authority, theirs: Authority
) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    async with https(fleet, ours) as session, session.post("/v1/chat/completions", json=BODY) as response:
        await response.content.readuntil(b'"content":"u"')
        theirs.put(files, "127.0.0.1", "localhost")
        assert await shown_to(fleet.service.port, theirs) == ssl.PEM_cert_to_DER_cert(files.cert.read_text())
        fleet.compute.flowing.set()
        assert (await response.text()).endswith("data: [DONE]\n\n")
    credentials = grpc.ssl_channel_credentials(theirs.ca.cert_pem.bytes())
    async with grpc.aio.secure_channel(f"localhost:{fleet.service.grpc_port}", credentials) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)


@pytest.mark.parametrize("broken", ["cert", "key"])
async def test_a_broken_replacement_is_named_and_the_last_good_one_is_shown(
    fleet: GatewayFleet, files: CertificateFiles, ours: Authority, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = await shown_to(fleet.service.port, ours)
    # Both are good, and they do not belong together: as between the writing of the first and of the second.
    other = ours.files("127.0.0.1", with_ca=False)
    getattr(files, broken).write_bytes(getattr(other, broken).read_bytes())
    assert await shown_to(fleet.service.port, ours) == before
    assert f"{files.key} is not the key of the certificate in {files.cert}; what was read before stays in use" in caplog.text
    rest = "key" if broken == "cert" else "cert"
    getattr(files, rest).write_bytes(getattr(other, rest).read_bytes())
    assert await shown_to(fleet.service.port, ours) == ssl.PEM_cert_to_DER_cert(other.cert.read_text())


@pytest.mark.parametrize("speaks", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16\x03\x01"], ids=["plain text", "nothing", "half a hello"])
async def test_who_does_not_get_past_tls_is_cut_off_counted_and_said(
    speaks: bytes, files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response()

    server = HttpServer("127.0.0.1:0", files, idle_timeout_s=5.0, handshake_timeout_s=0.1)
    await server.start(web.Server(answer))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(speaks)
    assert b"HTTP" not in await asyncio.wait_for(reader.read(), 20)
    await eventually(lambda: server.refused_handshakes == 1, "it is counted")
    assert f"port {server.port}: 1 connections did not get past TLS" in caplog.text
    writer.close()
    await server.close()


async def test_connections_that_get_past_tls_are_not_counted(files: CertificateFiles, ours: Authority) -> None:
    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response()

    server = HttpServer("127.0.0.1:0", files, idle_timeout_s=5.0, handshake_timeout_s=0.1)
    await server.start(web.Server(answer))
    for _ in range(3):
        await shown_to(server.port, ours)
    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.open_connection("127.0.0.1", server.port, ssl=ssl.create_default_context())
    await eventually(lambda: server.refused_handshakes == 1, "the client that refused our certificate is counted")
    await server.close()


@pytest.mark.parametrize("is_tls", [True, False])
async def test_http_beyond_this_machine_in_plain_text_is_said_loudly(
    is_tls: bool, files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    server = HttpServer("0.0.0.0:0", files if is_tls else None, idle_timeout_s=5.0)
    with caplog.at_level(logging.WARNING):
        await server.start(web.Server(lambda request: asyncio.sleep(0, web.Response())))
    await server.close()
    assert ("LISTENING ON 0.0.0.0:0 WITHOUT TLS" in caplog.text) is not is_tls


async def test_prometheus_is_told_of_who_was_refused(fleet: GatewayFleet, ours: Authority) -> None:
    async with https(fleet, ours) as session, session.get("/metrics") as response:
        text = await response.text()
    assert 'triserve_tls_refused_total{reason="handshake"} 0.0' in text
    assert 'triserve_tls_refused_total{reason="peer"} 0.0' in text


async def test_chat_and_bench_speak_https_to_a_server_with_a_ca_of_its_own(fleet: GatewayFleet, ours: Authority) -> None:
    url = f"https://127.0.0.1:{fleet.service.port}"
    ended = await triserve("chat", "--url", url, "--ca", str(ours.ca_file), "--question", "Hello")
    assert (ended.status, ended.errors) == (0, "") and ended.output == "user: Hello\nassistant: \n"
    ended = await triserve("bench", "--url", url, "--ca", str(ours.ca_file), "--requests", "2", "--max-input", "8", "--max-output", "1")
    assert "2/2" in ended.errors


async def test_the_command_line_says_why_it_does_not_speak_https(fleet: GatewayFleet, theirs: Authority, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{fleet.service.port}"
    wrong: list[tuple[list[str], str]] = [
        (["--url", url], f"triserve chat: the certificate of {url} is refused: unable to get local issuer certificate; --ca FILE says"),
        (["--url", url, "--ca", str(theirs.ca_file)], "is refused: unable to get local issuer certificate"),
        (["--url", url, "--ca", str(tmp_path / "none.pem")], "none.pem cannot be read: No such file or directory"),
        (["--url", "http://127.0.0.1:1", "--ca", str(theirs.ca_file)], "argument --ca: --url has no https:// address"),
    ]
    for options, words in wrong:
        ended: Any = await triserve("chat", *options, "--question", "Hello")
        assert ended.status == 1 and words in ended.errors
