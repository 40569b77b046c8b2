"""POST /v1/chat/completions."""

from __future__ import annotations

from aiohttp import web

from gateway.http.middleware import traced
from gateway.http.openai.answer import chat_choice
from gateway.http.openai.chat_body import ChatBody
from gateway.http.paths import add_route
from gateway.http.routes.generating import Style, respond
from gateway.http.sse import ChatEvents

STYLE = Style(
    route="chat",
    id_prefix="chatcmpl-",
    kind="chat.completion",
    choice=chat_choice,
    events=ChatEvents,
    prompt_field="messages",
    default_max_tokens=None,
)


def add_to(app: web.Application) -> None:
    """Adds the routes."""
    add_route(app, "POST", "/v1/chat/completions", create)


@traced
async def create(request: web.Request) -> web.StreamResponse:
    """Answers a chat."""
    return await respond(request, STYLE, ChatBody, lambda body: (body.prompt(),))
