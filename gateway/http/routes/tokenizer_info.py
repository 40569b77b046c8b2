"""GET /tokenizer_info: what a client needs to tokenize and to render chats on its own."""

from __future__ import annotations

from aiohttp import web

from gateway.context import GATEWAY
from gateway.http.answering import json_response
from gateway.http.paths import add_route


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "GET", "/tokenizer_info", tokenizer_info)


async def tokenizer_info(request: web.Request) -> web.Response:
    """The tokenizer under the names of its tokenizer_config.json, and what the gateway makes of it.

    The chat template is no secret to who has a key: /tokenize and /detokenize show what it prints of any chat.
    """
    stages = request.app[GATEWAY].fleet.serving()
    info, model = stages.tokenizer_info, stages.model
    return json_response(
        {
            **{token.name: token.content for token in info.special_tokens},
            "tokenizer_class": info.tokenizer_class or None,
            "additional_special_tokens": list(info.additional_special_tokens),
            "chat_template": info.chat_template or None,
            "model_max_length": model.max_model_len_tokens,
            # Ids below it have a token.
            "vocab_size": min(model.vocab_size, model.logits_width),
            "eos_token_ids": list(model.eos_token_ids),
            # What callers may give in chat_template_kwargs.
            "template_arguments": list(model.template_arguments),
            "tokenizer_sha256": model.tokenizer_sha256,
        }
    )
