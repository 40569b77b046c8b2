"""Puts the HTTP application together: routes, and around them ids, errors and keys."""

from __future__ import annotations

from aiohttp import web

from gateway.context import GATEWAY, Gateway
from gateway.http.middleware import add_headers, answer_options, authenticate, check_host, deliver, identify, trace, translate_errors
from gateway.http.routes import (
    cache,
    capabilities,
    chat,
    completions,
    embeddings,
    health,
    messages,
    metrics,
    models,
    openapi,
    page,
    responses,
    tokenize,
    tokenizer_info,
    version,
)

_ROUTES = (
    *(chat, completions, embeddings, responses, messages),
    *(models, capabilities, version, tokenize, tokenizer_info, openapi, cache, health, metrics, page),
)


def make_app(gateway: Gateway) -> web.Application:
    """The application of a gateway."""
    # What is not traced is to cost nothing.
    tracing = [trace] if gateway.traces is not None else []
    app = web.Application(
        middlewares=[identify, *tracing, deliver, translate_errors, check_host, answer_options, authenticate],
        client_max_size=gateway.limits.max_body_bytes,
    )
    app[GATEWAY] = gateway
    app.on_response_prepare.append(add_headers)
    for routes in _ROUTES:
        routes.add_to(app)
    return app
