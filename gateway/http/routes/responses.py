"""POST /v1/responses."""

from __future__ import annotations

import time

from aiohttp import web

from gateway.context import GATEWAY
from gateway.http.middleware import traced
from gateway.http.paths import add_route
from gateway.http.responses.answer import ResponseRenderer
from gateway.http.responses.schema import ResponsesBody
from gateway.http.routes.generating import Door, Plan, answer, call_of

_DOOR = Door(route="responses", id_prefix="resp_", prompt_field="input")


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "POST", "/v1/responses", create)


@traced
async def create(request: web.Request) -> web.StreamResponse:
    """Answers a chat in the form of a response. Nothing is stored."""

    def plan(body: ResponsesBody) -> Plan:
        call = call_of(request, _DOOR, body, (body.prompt(),))
        model = request.app[GATEWAY].names.name
        return Plan(call, ResponseRenderer(body, request_id=call.request_id, model=model, created=int(time.time())))

    return await answer(request, ResponsesBody, plan)
