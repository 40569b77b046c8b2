"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from dataclasses import replace

from aiohttp import web

from gateway.context import GATEWAY, GRANT
from gateway.flow.generations.generation import Usage
from gateway.http.middleware import traced
from gateway.http.openai.embedding_body import EmbeddingBody
from gateway.http.paths import add_route
from gateway.http.routes.generating import Door, call_of
from triserve.rpc.errors import Internal

_DOOR = Door(route="embeddings", id_prefix="embd-", prompt_field="input")
# Of a vector of nothing but zeros there is no direction.
_LEAST_LENGTH = 1e-12


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "POST", "/v1/embeddings", create)


@traced
async def create(request: web.Request) -> web.Response:
    """A vector of each input: of the model's hidden states behind its final norm."""
    gateway = request.app[GATEWAY]
    tenant = request[GRANT].tenant
    gateway.admission.require_open()
    async with gateway.bodies.read(request, EmbeddingBody, tenant=tenant) as body:
        gateway.names.require(body.model)
        size = gateway.fleet.serving().model.hidden_size
        body.check_size(size)
        prompts = body.prompts()
        call = replace(call_of(request, _DOOR, body, prompts), hidden_states=body.hidden_states)
        with gateway.admission.enter(tenant) as ticket:
            async with gateway.pipeline.open(call, ticket) as generation:
                vectors: dict[int, bytes] = {}
                while not generation.finished:
                    vectors |= {piece.choice: piece.delta.hidden_states for piece in await generation.next()}
                usage = generation.usage()
            in_order = [vectors[index] for index in range(len(prompts))]
            text = await _answer(body, in_order, size, model=gateway.names.name, usage=usage)
    return web.Response(body=text.encode(), content_type="application/json")


async def _answer(body: EmbeddingBody, vectors: list[bytes], size: int, *, model: str, usage: Usage) -> str:
    """The answer's JSON, made one embedding at a time, between which others go on."""
    entries = []
    for index, vector in enumerate(vectors):
        if len(vector) != 4 * size:
            raise Internal("an embedding was lost between the stages")
        entry = {"object": "embedding", "index": index, "embedding": _embedding(body, vector)}
        entries.append(json.dumps(entry))
        await asyncio.sleep(0)
    rest = {"model": model, "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}}
    return f'{{"object": "list", "data": [{", ".join(entries)}], {json.dumps(rest)[1:]}'


def _embedding(body: EmbeddingBody, vector: bytes) -> list[float] | str:
    form = f"<{len(vector) // 4}f"
    if body.normalize is not False:
        numbers = struct.unpack(form, vector)
        length = max(math.sqrt(math.fsum(one * one for one in numbers)), _LEAST_LENGTH)
        vector = struct.pack(form, *(one / length for one in numbers))
    return base64.b64encode(vector).decode() if body.encoding_format == "base64" else list(struct.unpack(form, vector))
