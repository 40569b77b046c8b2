"""GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gateway.context import GATEWAY, Gateway
from gateway.http.answering import json_response
from gateway.http.paths import add_route


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "GET", "/v1/models", list_models)
    # Names of models may have slashes, but none at the end.
    add_route(app, "GET", "/v1/models/{name:.*[^/]}", get_model)


async def list_models(request: web.Request) -> web.Response:
    """All names under which the model is served."""
    gateway = request.app[GATEWAY]
    return json_response({"object": "list", "data": [_model(gateway, name) for name in gateway.names.all]})


async def get_model(request: web.Request) -> web.Response:
    """One of them."""
    gateway = request.app[GATEWAY]
    name = request.match_info["name"]
    gateway.names.require(name)
    return json_response(_model(gateway, name))


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    served = gateway.fleet.serving().model
    return {
        "id": name,
        "object": "model",
        "created": gateway.started_at,
        "owned_by": "triserve",
        "root": gateway.names.name,
        "max_model_len": served.max_model_len_tokens,
        # Ids below it have a token. Up to the width of the logits others are taken and given out too; they say nothing.
        "vocab_size": min(served.vocab_size, served.logits_width),
        "weights_revision": served.weights_revision,
        "computation": served.computation,
        "tokenizer_sha256": served.tokenizer_sha256,
    }
