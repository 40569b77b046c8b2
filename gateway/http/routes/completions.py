"""POST /v1/completions."""

from __future__ import annotations

from aiohttp import web

from gateway.http.middleware import traced
from gateway.http.openai.answer import completion_choice
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.paths import add_route
from gateway.http.routes.generating import Style, respond
from gateway.http.sse import CompletionEvents

# OpenAI's default, on which clients of this older API rely.
_DEFAULT_MAX_TOKENS = 16

_STYLE = Style(
    route="completions",
    id_prefix="cmpl-",
    kind="text_completion",
    choice=completion_choice,
    events=CompletionEvents,
    prompt_field="prompt",
    default_max_tokens=_DEFAULT_MAX_TOKENS,
)


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "POST", "/v1/completions", create)


@traced
async def create(request: web.Request) -> web.StreamResponse:
    """Continues one or more prompts."""
    return await respond(request, _STYLE, CompletionBody, CompletionBody.prompts)
