"""What every HTTP request goes through."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.http.middleware import add_headers, identify, translate_errors
from triserve.rpc.errors import Overloaded


async def _explode(request: web.Request) -> web.Response:
    raise AssertionError("secret of the inside")


async def _refuse(request: web.Request) -> web.Response:
    raise Overloaded("full")


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = web.Application(middlewares=[identify, translate_errors])
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/explode", _explode)
    app.router.add_get("/refuse", _refuse)
    async with TestClient(TestServer(app)) as client:
        yield client


async def test_an_error_of_ours_says_nothing_of_the_inside_and_is_logged_under_the_requests_id(
    client: TestClient[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = await client.get("/explode")
    assert response.status == 500
    assert (await response.json())["error"] == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert "secret of the inside" in caplog.text
    assert response.headers["X-Request-Id"] in caplog.text


async def test_an_error_for_clients_has_its_status_headers_and_body(client: TestClient[Any, Any]) -> None:
    response = await client.get("/refuse")
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert (await response.json())["error"]["message"] == "full"


async def test_ids_are_made_here_and_a_clients_own_is_echoed_only_if_it_is_plain(client: TestClient[Any, Any]) -> None:
    ids = set()
    for label, echoed in (("abc-1.2:3_x", True), ("a b", False), ("<script>", False), ("x" * 200, False), ("", False)):
        response = await client.get("/refuse", headers={"X-Request-Id": label})
        ids.add(response.headers["X-Request-Id"])
        assert ("X-Client-Request-Id" in response.headers) == echoed
    assert len(ids) == 5
    assert all(len(one) == 32 for one in ids)


async def test_every_response_has_the_security_headers(client: TestClient[Any, Any]) -> None:
    response = await client.get("/nothing")
    assert (response.status, response.headers["X-Content-Type-Options"]) == (404, "nosniff")
