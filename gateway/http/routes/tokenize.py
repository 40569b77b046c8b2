"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web

from gateway.context import GATEWAY, GRANT, Gateway
from gateway.flow.preparation import in_clients_words
from gateway.flow.resolve import check_messages
from gateway.flow.token_rules import check_token_ids
from gateway.http.answering import json_response
from gateway.http.openai.tokenize_bodies import DetokenizeBody, TokenizeBody
from gateway.http.openai.values import Body
from gateway.http.paths import add_route
from triserve.rpc.errors import DeadlineExceeded, InvalidRequest
from triserve.v1 import tokenizer_pb2

# Ids and strings handled without a break: about a millisecond.
_SLICE = 8192

T = TypeVar("T")
B = TypeVar("B", bound=Body)


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "POST", "/tokenize", tokenize)
    add_route(app, "POST", "/detokenize", detokenize)


async def tokenize(request: web.Request) -> web.Response:
    """Token ids of a text or of a chat as the model's template renders it. Special tokens in them are plain text."""
    gateway = request.app[GATEWAY]
    async with admitted(request, TokenizeBody) as body:
        gateway.names.require(body.model)
        field = "prompt" if body.messages is None else "messages"
        encode, stages = body.input(), gateway.fleet.serving()
        check_messages(encode.chat, field, gateway.limits)
        if encode.chat.tools and not stages.model.takes_tools:
            raise InvalidRequest("tools is not supported: the model's chat template takes no tools", field="tools")
        encoded = await in_time(gateway, stages.encode(encode), field)
        strings = "null"
        if body.return_token_strs:
            decode = tokenizer_pb2.DecodeRequest(return_tokens=True)
            await _add_ids(decode, encoded.token_ids)
            strings = await _json_list((await in_time(gateway, stages.decode(decode), field)).tokens)
        tokens = await _json_list(encoded.token_ids)
        rest = {
            "count": len(encoded.token_ids),
            "max_model_len": stages.model.max_model_len_tokens,
            # Leading tokens that are the same in every chat with this system prompt.
            "system_tokens": encoded.system_tokens,
        }
        text = f'{{"tokens": {tokens}, "token_strs": {strings}, {json.dumps(rest)[1:]}'
        return web.Response(body=text.encode(), content_type="application/json")


async def detokenize(request: web.Request) -> web.Response:
    """Text of token ids; special tokens are written out. Every id is taken that a model may give or a prompt may have."""
    gateway = request.app[GATEWAY]
    async with admitted(request, DetokenizeBody) as body:
        gateway.names.require(body.model)
        stages = gateway.fleet.serving()
        check_token_ids("tokens", body.tokens, stages.model)
        decode = tokenizer_pb2.DecodeRequest(skip_special_tokens=False)
        await _add_ids(decode, body.tokens)
        return json_response({"prompt": (await in_time(gateway, stages.decode(decode), "tokens")).text})


@asynccontextmanager
async def admitted(request: web.Request, kind: type[B]) -> AsyncIterator[B]:
    """The body of a request that is let in once the body is there."""
    gateway = request.app[GATEWAY]
    tenant = request[GRANT].tenant
    gateway.admission.require_open()
    async with gateway.bodies.read(request, kind, tenant=tenant) as body:
        with gateway.admission.enter(tenant):
            yield body


async def _add_ids(decode: tokenizer_pb2.DecodeRequest, token_ids: Sequence[int]) -> None:
    """Adds ids, of which there may be a million, and lets others go on in between."""
    for start in range(0, len(token_ids), _SLICE):
        decode.token_ids.extend(token_ids[start : start + _SLICE])
        await asyncio.sleep(0)


async def _json_list(items: Sequence[int] | Sequence[str]) -> str:
    """The items as a JSON list, made as `_add_ids` adds."""
    pieces = []
    for start in range(0, len(items), _SLICE):
        pieces.append(json.dumps(list(items[start : start + _SLICE]))[1:-1])
        await asyncio.sleep(0)
    return f"[{', '.join(pieces)}]"


async def in_time(gateway: Gateway, work: Awaitable[T], field: str) -> T:
    """What the tokenizer answers, in the client's words if it refuses."""
    try:
        async with asyncio.timeout(gateway.limits.request_timeout_s):
            return await work
    except TimeoutError:
        raise DeadlineExceeded(f"the request took longer than {gateway.limits.request_timeout_s:g} s") from None
    except InvalidRequest as error:
        raise in_clients_words(error, field) from error
