"""POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from aiohttp import web

from gateway.context import GATEWAY, REQUEST_ID
from gateway.flow.resolve import check_messages
from gateway.http.answering import json_response
from gateway.http.messages.answer import MessageRenderer
from gateway.http.messages.errors import error_answer
from gateway.http.messages.schema import CountBody, MessagesBody
from gateway.http.middleware import traced, with_errors
from gateway.http.paths import add_route
from gateway.http.routes.generating import Door, Plan, answer, call_of
from gateway.http.routes.tokenize import admitted, in_time

_FIELD = "messages"
_DOOR = Door(route="messages", id_prefix="msg_", prompt_field=_FIELD)


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "POST", "/v1/messages", create)
    add_route(app, "POST", "/v1/messages/count_tokens", count_tokens)


@traced
@with_errors(error_answer)
async def create(request: web.Request) -> web.StreamResponse:
    """Answers a chat in the form of a message."""

    def plan(body: MessagesBody) -> Plan:
        # More than fits is no error: such an answer says that the context has ended it.
        call = call_of(request, _DOOR._replace(default_max_tokens=body.max_tokens), body, (body.prompt(),))
        model = request.app[GATEWAY].names.name
        return Plan(call, MessageRenderer(body, message_id=call.request_id, request_id=request[REQUEST_ID], model=model))

    return await answer(request, MessagesBody, plan)


@with_errors(error_answer)
async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens the prompt of a message would have."""
    gateway = request.app[GATEWAY]
    async with admitted(request, CountBody) as body:
        gateway.names.require(body.model)
        encode = body.prompt()
        check_messages(encode.chat, _FIELD, gateway.limits)
        encoded = await in_time(gateway, gateway.fleet.serving().encode(encode), _FIELD)
        return json_response({"input_tokens": len(encoded.token_ids)})
