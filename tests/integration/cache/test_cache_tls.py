"""Redis over TLS: the cache works with the right certificates, and with wrong ones it is as if there were no Redis."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis as redis_py
import trustme

from gateway.settings import Settings
from prompt_cache import CacheConfig, CachedAnswer, CachedDelta, CacheScope, PromptCache
from prompt_cache.acl import acl_rule
from prompt_cache.redis_tls import TlsFiles
from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import EOS
from tests.fakes.gateway_fleet import eventually, running_fleet
from tests.fakes.redis_servers import RedisServer
from tests.fakes.tls_proxy import TlsProxy, tls_proxy
from triserve.v1 import common_pb2

SECRET = b"0123456789abcdef"
ANSWER = CachedAnswer(deltas=(CachedDelta("Paris.", (1,)),), finish_reason="stop", prompt_tokens=3, created_at=1)
SCOPE = CacheScope(tenant="a", model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"")


class Certificates:
    """An authority, and what it has signed, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))

    def server(self, *names: str, wants_client: bool = False, **fields: Any) -> ssl.SSLContext:
        """What a server shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1",)), **fields).configure_cert(context)
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context

    def client(self, name: str = "gateway") -> TlsFiles:
        """What a client shows."""
        issued, cert, key = self.ca.issue_cert(name), self.folder / "client.pem", self.folder / "client.key"
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(cert))
        return TlsFiles(ca=self.ca_file, cert=cert, key=key)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "ca")


@asynccontextmanager
async def caching(port: int, files: TlsFiles, *, host: str = "127.0.0.1", user: str = "") -> AsyncIterator[PromptCache]:
    """A cache on a Redis behind TLS, with more patience than a busy machine needs; its own memory keeps nothing."""
    config = CacheConfig(
        redis_url=f"rediss://{user}{host}:{port}/0",
        redis_tls=files,
        secret=SECRET,
        l0_max_entries=0,
        socket_timeout_s=5.0,
        lookup_timeout_s=5.0,
        breaker_failures=1,
        breaker_open_s=0.01,
    )
    cache = PromptCache(config)
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


async def keeps(cache: PromptCache, number: int = 1) -> bool:
    """Whether an answer that is put is found again."""
    key = cache.key(SCOPE, [number])
    cache.put(key, ANSWER)
    await cache.drain()
    return await cache.get(key) == ANSWER


def saying_paris(request: Any) -> list[Say]:
    """A short answer."""
    return [Say("Paris.", [1, 2]), Say("", [EOS], common_pb2.FINISH_REASON_STOP)]


async def chatted(session: aiohttp.ClientSession, question: str) -> str:
    """What the cache did for a question that was answered."""
    async with session.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": question}]}) as response:
        assert response.status == 200, await response.text()
        return response.headers["X-Triserve-Cache"]


async def again(cache: PromptCache, number: int) -> bool:
    """Whether the cache works once Redis is no longer left alone."""
    assert cache.guarded is not None
    guarded = cache.guarded
    await eventually(guarded.usable, "Redis is in use again")
    return await keeps(cache, number)


@pytest.fixture
async def proxied(plain_redis: RedisServer, certificates: Certificates) -> AsyncIterator[TlsProxy]:
    async with tls_proxy(plain_redis.port, certificates.server()) as proxy:
        yield proxy


@pytest.fixture
def plain_redis(tmp_path: Path) -> Any:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    yield server
    server.kill()


async def test_with_the_right_authority_answers_are_kept(proxied: TlsProxy, certificates: Certificates) -> None:
    async with caching(proxied.port, TlsFiles(ca=certificates.ca_file)) as cache:
        assert await keeps(cache) and proxied.connections
        assert cache.stats.errors == 0


def _expired() -> dict[str, Any]:
    return {"not_before": datetime.now(UTC) - timedelta(days=2), "not_after": datetime.now(UTC) - timedelta(days=1)}


@pytest.mark.parametrize(
    ("names", "fields", "reason"),
    [(("127.0.0.1",), _expired, "expired"), (("redis.elsewhere",), dict, "127.0.0.1")],
    ids=["expired", "another name"],
)
async def test_a_certificate_that_is_expired_or_another_s_is_refused_and_the_log_says_why(
    plain_redis: RedisServer,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
    names: tuple[str, ...],
    fields: Callable[[], dict[str, Any]],
    reason: str,
) -> None:
    caplog.set_level(logging.WARNING)
    async with (
        tls_proxy(plain_redis.port, certificates.server(*names, **fields())) as proxy,
        caching(proxy.port, TlsFiles(ca=certificates.ca_file)) as cache,
    ):
        assert not await keeps(cache)
        assert cache.stats.errors > 0 and not proxy.connections
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text and reason in caplog.text


async def test_another_authority_and_the_system_s_own_are_refused_where_one_is_given(
    plain_redis: RedisServer, certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Certificates(tmp_path / "other")
    async with tls_proxy(plain_redis.port, other.server()) as proxy:
        for files in (TlsFiles(ca=certificates.ca_file), TlsFiles()):
            async with caching(proxy.port, files) as cache:
                assert not await keeps(cache)
                assert cache.stats.breaker_open
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


async def test_a_redis_that_speaks_no_tls_is_not_spoken_to_without(plain_redis: RedisServer, certificates: Certificates) -> None:
    async with caching(plain_redis.port, TlsFiles(ca=certificates.ca_file)) as cache:
        assert not await keeps(cache)
        assert cache.stats.errors > 0


async def test_a_redis_that_asks_who_comes_is_shown_a_certificate(plain_redis: RedisServer, certificates: Certificates) -> None:
    async with tls_proxy(plain_redis.port, certificates.server(wants_client=True)) as proxy:
        async with caching(proxy.port, certificates.client()) as cache:
            assert await keeps(cache)
        async with caching(proxy.port, TlsFiles(ca=certificates.ca_file)) as cache:
            assert not await keeps(cache)


async def test_files_that_are_replaced_are_used_by_the_next_connection(
    plain_redis: RedisServer, certificates: Certificates, tmp_path: Path
) -> None:
    new = Certificates(tmp_path / "new")
    async with AsyncExitStack() as stack:
        async with tls_proxy(plain_redis.port, certificates.server()) as old:
            cache = await stack.enter_async_context(caching(old.port, TlsFiles(ca=certificates.ca_file)))
            assert await keeps(cache)
        # The same address shows a certificate of the new authority from now on.
        proxy = await stack.enter_async_context(tls_proxy(plain_redis.port, new.server(), old.port))
        assert not await keeps(cache, number=2)
        shutil.copy(new.ca_file, certificates.ca_file)
        assert await again(cache, number=3) and proxy.connections


async def test_files_that_do_not_fit_together_yet_leave_the_last_ones_in_use(certificates: Certificates, proxied: TlsProxy) -> None:
    files = certificates.client()
    async with caching(proxied.port, files) as cache:
        assert await keeps(cache)
        assert files.cert is not None
        files.cert.write_text("half of a certifi")
        proxied.cut()
        # The first to find its connection broken is not served.
        await keeps(cache, number=2)
        assert await again(cache, number=3)


async def test_the_least_privileged_user_does_all_of_it_over_tls(
    plain_redis: RedisServer, certificates: Certificates, proxied: TlsProxy
) -> None:
    with redis_py.Redis.from_url(plain_redis.url) as admin:
        admin.execute_command(*acl_rule("vector-sets", user="triserve", password="pw").split())
    async with caching(proxied.port, TlsFiles(ca=certificates.ca_file), user="triserve:pw@") as cache:
        assert await keeps(cache)
        flights = cache.share_flights()
        assert flights is not None
        await flights.start()
        lead = await flights.board(cache.key(SCOPE, [9]))
        assert lead is not None and flights.stats.led == 1 and flights.stats.refused == 0
        await flights.close()


async def test_clients_are_answered_whatever_the_certificate_is_and_the_semantic_cache_works_with_the_right_one(
    plain_redis: RedisServer, certificates: Certificates, tmp_path: Path
) -> None:
    other = Certificates(tmp_path / "other")
    settings: dict[str, Any] = {"semantic_cache": "on", "embedder": "ngrams", "semantic_timeout_ms": 5000, "cache_timeout_ms": 5000}
    async with tls_proxy(plain_redis.port, certificates.server()) as proxy:
        for ca, status in ((certificates.ca_file, "hit-semantic"), (other.ca_file, "bypass")):
            url = f"rediss://127.0.0.1:{proxy.port}"
            async with (
                running_fleet(
                    computes=[FakeCompute(saying_paris)], redis_url=url, redis_ca_file=ca, cache_secret="s" * 16, **settings
                ) as fleet,
                aiohttp.ClientSession(fleet.url) as session,
            ):
                cache = fleet.service.gateway.pipeline.cache
                assert cache is not None and cache.semantic is not None and cache.cache.guarded is not None
                if status == "hit-semantic":
                    semantic = cache.semantic
                    await eventually(lambda: semantic.is_open)  # noqa: B023 - it is awaited here
                await chatted(session, "What is the capital of France?")
                await cache.semantic.drain()
                assert await chatted(session, "what's the capital of France") == status


async def test_a_redis_that_speaks_tls_itself(certificates: Certificates, tmp_path: Path) -> None:
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on this machine: those of wheels speak no TLS, Debian's does")
    issued = certificates.ca.issue_cert("127.0.0.1")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(cert))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tls = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", certificates.ca_file)
    try:
        server = RedisServer(tmp_path, program=program, settings=[str(word) for word in ("--port", 0, "--tls-port", port, *tls)])
    except AssertionError as error:
        if "Bad directive" not in str(error):
            raise
        pytest.skip("the redis-server on this machine speaks no TLS: Debian's does")
    try:
        async with caching(port, certificates.client()) as cache:
            assert await keeps(cache)
        async with caching(port, TlsFiles(ca=certificates.ca_file)) as cache:
            assert not await keeps(cache), "it asks for a client's certificate"
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"redis_url": "redis://h", "redis_ca_file": "ca"}, "does not begin with rediss://"),
        ({"redis_url": "rediss://h", "redis_cert_file": "ca"}, "needs its key"),
        ({"redis_url": "rediss://h", "redis_ca_file": "empty"}, "empty"),
        ({"redis_url": "rediss://h?ssl_cert_reqs=none"}, "and no others"),
        ({"redis_url": "redis://h?retry_on_timeout=true"}, "and no others"),
        ({"redis_url": "redis://u:p@ss/word@h"}, "%2F"),
        ({"redis_url": "redis://u:p@ss@h"}, "%40"),
        ({"redis_url": "redis://u:pa#ss@h"}, "%23"),
        ({"redis_url": "redis://u:pa?ss@h"}, "%3F"),
        ({"redis_url": "redis://h/abc"}, "HOST:PORT/DB"),
        ({"redis_url": "redis://h:port"}, "HOST:PORT/DB"),
        ({"redis_url": "http://h"}, "must begin with"),
        ({"redis_ca_file": "ca"}, "need GATEWAY_REDIS_URL"),
        ({"redis_url": "rediss://h", "redis_ca_file": "nowhere"}, "redis_ca_file"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_by_name(
    certificates: Certificates, tmp_path: Path, fields: dict[str, str], words: str
) -> None:
    files = {"ca": certificates.ca_file, "empty": tmp_path / "empty", "nowhere": tmp_path / "nowhere"}
    files["empty"].write_text("")
    with pytest.raises(ValueError, match=words):
        Settings(**{name: files.get(value, value) for name, value in fields.items()})  # type: ignore[arg-type]
