"""The API does what its OpenAPI document says: every route is in it, and whatever is sent, what comes back fits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import hypothesis
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from gateway.http.app import make_app
from gateway.http.openapi.document import document
from gateway.http.openapi.operations import OPERATIONS, Operation
from tests.fakes.gateway_fleet import GatewayFleet, running_fleet

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
# No JSON: a page and its parts, metrics in Prometheus' text format, and the document itself.
UNDESCRIBED = {"/metrics", "/openapi.json", "/", "/static/{name}"}


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet() as fleet:
        yield fleet


def test_the_document_is_one_of_openapi_3_1() -> None:
    schemathesis.openapi.from_dict(document()).validate()
    for schema in document()["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


async def test_every_route_is_described_and_every_description_is_a_route(fleet: GatewayFleet) -> None:
    app = make_app(fleet.service.gateway)
    described = {(one.method, one.path) for one in OPERATIONS}
    found = set()
    for route in app.router.routes():
        path = route.resource.canonical if route.resource is not None else ""
        # Each route is served with and without /v1, and with a slash.
        names = {(route.method, name.replace("{name:.*[^/]}", "{name}")) for name in (path.rstrip("/") or "/", f"/v1{path}".rstrip("/"))}
        names |= {(method, path.removeprefix("/v1").rstrip("/") or "/") for method, path in names}
        if route.method == "HEAD" or {path for _, path in names} & UNDESCRIBED:
            continue
        assert names & described, names
        found |= names & described
    assert found == described


async def test_a_client_gets_the_document(fleet: GatewayFleet) -> None:
    async with aiohttp.ClientSession(fleet.url) as session, session.get("/openapi.json") as response:
        assert (response.status, await response.json()) == (200, document())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
async def test_whatever_is_sent_no_answer_is_a_fault_and_every_answer_is_as_described(fleet: GatewayFleet, operation: Operation) -> None:
    described: Any = schemathesis.openapi.from_dict(document())[operation.path][operation.method]

    @hypothesis.settings(max_examples=12 if operation.body else 2, deadline=None, database=None, derandomize=True)
    @hypothesis.given(case=described.as_strategy())
    def holds(case: Any) -> None:
        case.call_and_validate(base_url=fleet.url, checks=CHECKS, timeout=20)

    await asyncio.to_thread(holds)
