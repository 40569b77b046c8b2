"""Who is let in: keys, what they grant, and the names this server answers to. Advisories of other servers are named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from gateway.http.app import make_app
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet

COMPLETION = "/v1/completions"
HEALTH_PATHS = ("/health", "/health/", "/v1/health", "/v1/health/")
PING_PATHS = tuple(path.replace("health", "ping") for path in HEALTH_PATHS)
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
async def keyed(tmp_path: Any) -> AsyncIterator[GatewayFleet]:
    keys = tmp_path / "keys"
    keys.write_text("acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    async with running_fleet(api_keys_file=keys) as fleet:
        yield fleet


async def test_every_route_but_health_and_the_page_needs_a_key(keyed: GatewayFleet) -> None:
    app = make_app(keyed.service.gateway)
    open_routes = set()
    async with aiohttp.ClientSession(keyed.url) as session:
        for resource in app.router.resources():
            path = resource.canonical.replace("{name}", "style.css")
            for route in resource:
                async with session.request(route.method, path) as response:
                    if response.status != 401:
                        open_routes.add((route.method, resource.canonical))
        for method, path in (("GET", "/nothing"), ("POST", "/health"), ("GET", "//v1/models"), ("GET", "/static/../v1/models")):
            async with session.request(method, URL(keyed.url + path, encoded=True)) as response:
                assert response.status == 401, path
    pings = {(method, path) for method in ("GET", "HEAD", "POST") for path in PING_PATHS}
    assert open_routes == {(method, path) for method in ("GET", "HEAD") for path in ("/", *HEALTH_PATHS, "/static/{name}")} | pings


@pytest.mark.parametrize("host", ["x/health?", "127.0.0.1/health", "evil/static/style.css", "a:b:c"])
async def test_cve_2026_48746_the_host_header_opens_no_route(keyed: GatewayFleet, host: str) -> None:
    async with aiohttp.ClientSession(keyed.url) as session:
        async with session.get("/v1/models", headers={"Host": host}) as response:
            assert response.status in (400, 401)
        async with session.get("/v1/models", headers=KEY) as response:
            assert response.status == 200


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost", 200), ("127.0.0.1:8000", 200), ("chat.example", 200)])
async def test_without_keys_a_name_that_is_not_this_servers_is_refused(host: str, status: int) -> None:
    async with running_fleet(allowed_hosts=("chat.example",)) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/metrics")):
            async with session.request(method, path, headers={"Host": host}) as response:
                assert response.status == status
        async with session.post(COMPLETION, json={"prompt": "a"}, headers={"Host": host}) as response:
            assert response.status == status
            if status == 403:
                error = (await response.json())["error"]
                assert error["code"] == "unknown_host"
                assert "GATEWAY_ALLOWED_HOSTS" in error["message"]


async def test_metrics_are_for_operators_keys_alone(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(
        "acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n"
        "ops d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa metrics\n"
    )
    async with running_fleet(api_keys_file=keys) as fleet, aiohttp.ClientSession(fleet.url) as session:
        for key, status in (("secret", 403), ("other", 200)):
            async with session.get("/metrics", headers={"Authorization": f"Bearer {key}"}) as response:
                assert response.status == status
            async with session.get("/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
                assert response.status == 200


async def test_no_header_names_a_version() -> None:
    async with running_fleet() as fleet, aiohttp.ClientSession(fleet.url) as session:
        for path in ("/health", "/nothing", "/v1/models", "/"):
            async with session.get(path) as response:
                assert response.headers["Server"] == "triserve"
