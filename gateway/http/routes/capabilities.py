"""GET /v1/capabilities: which fields are taken, which come to nothing and which are refused, made from the schema itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gateway.context import GATEWAY, Gateway
from gateway.flow.search.rules import MAX_BEAMS
from gateway.http.answering import json_response
from gateway.http.messages.blocks import MessageTool
from gateway.http.messages.schema import REFUSED_IN_MESSAGES, CountBody, MessagesBody
from gateway.http.openai.chat_body import ChatBody
from gateway.http.openai.completion_body import CompletionBody
from gateway.http.openai.embedding_body import EmbeddingBody
from gateway.http.openai.fields import REFUSED, REFUSED_IN_MESSAGE, REFUSED_IN_STREAM_OPTIONS, Refused
from gateway.http.openai.generating import CacheField, StreamOptions
from gateway.http.openai.messages import Message
from gateway.http.openai.structured_fields import TextFormat
from gateway.http.openai.tokenize_bodies import REFUSED_IN_TOKENIZE, DetokenizeBody, TokenizeBody
from gateway.http.openai.tool_schema import AssistantCall, Function
from gateway.http.openai.values import WITHOUT_EFFECT
from gateway.http.openapi.document import ranges
from gateway.http.paths import add_route
from gateway.http.responses.items import InputCall, InputMessage, InputReasoning, InputResult, ResponseTool
from gateway.http.responses.schema import (
    REFUSED_IN_REASONING,
    REFUSED_IN_RESPONSE,
    REFUSED_IN_TEXT,
    Reasoning,
    ResponsesBody,
    TextConfig,
)
from triserve.rpc import limits as contract

_BODIES: Mapping[str, tuple[type[BaseModel], Refused]] = {
    "/v1/chat/completions": (ChatBody, REFUSED),
    "/v1/completions": (CompletionBody, REFUSED),
    "/v1/embeddings": (EmbeddingBody, EmbeddingBody.refused),
    "/v1/responses": (ResponsesBody, REFUSED_IN_RESPONSE),
    "/v1/messages": (MessagesBody, REFUSED_IN_MESSAGES),
    "/v1/messages/count_tokens": (CountBody, REFUSED_IN_MESSAGES),
    "/tokenize": (TokenizeBody, REFUSED_IN_TOKENIZE),
    "/detokenize": (DetokenizeBody, {}),
}
_OBJECTS: Mapping[str, tuple[type[BaseModel], Refused]] = {
    "message": (Message, REFUSED_IN_MESSAGE),
    "tool": (Function, {}),
    "tool_call": (AssistantCall, {}),
    "responses.input": (InputMessage, {}),
    "responses.input.function_call": (InputCall, {}),
    "responses.input.function_call_output": (InputResult, {}),
    "responses.input.reasoning": (InputReasoning, {}),
    "responses.tool": (ResponseTool, {}),
    "responses.text": (TextConfig, REFUSED_IN_TEXT),
    "responses.text.format": (TextFormat, {}),
    "responses.reasoning": (Reasoning, REFUSED_IN_REASONING),
    "messages.tool": (MessageTool, {}),
    "stream_options": (StreamOptions, REFUSED_IN_STREAM_OPTIONS),
    "cache": (CacheField, {}),
}


def add_to(app: web.Application) -> None:
    """Adds the route."""
    add_route(app, "GET", "/v1/capabilities", capabilities)


async def capabilities(request: web.Request) -> web.Response:
    """What may be asked here, and of which size."""
    gateway = request.app[GATEWAY]
    model = gateway.fleet.serving().model
    return json_response(
        {
            "object": "capabilities",
            "model": gateway.names.name,
            "system_fingerprint": model.system_fingerprint,
            "features": features(gateway),
            "limits": {
                **gateway.limits.model_dump(),
                "max_tools": contract.MAX_TOOLS,
                "max_tool_calls": contract.MAX_TOOL_CALLS,
                "max_tool_json_depth": contract.MAX_TOOL_JSON_DEPTH,
                "max_logprob_token_ids": contract.MAX_LOGPROB_TOKEN_IDS,
                "max_listed_token_ids": contract.MAX_LISTED_TOKEN_IDS,
                "max_bad_words": contract.MAX_BAD_WORD_STRINGS,
                "max_bad_word_chars": contract.MAX_BAD_WORD_CHARS,
                "max_bad_word_tokens": contract.MAX_BAD_WORD_TOKENS,
                "max_dry_sequence_breakers": contract.MAX_DRY_BREAKERS,
                "max_dry_sequence_breaker_chars": contract.MAX_DRY_BREAKER_CHARS,
                "max_beams": min(MAX_BEAMS, gateway.limits.max_n),
                "max_model_len": model.max_model_len_tokens,
                # Ids in prompts and answers are below it.
                "token_ids": model.logits_width,
            },
            "ranges": {name: str(one) for name, one in ranges(ChatBody.model_fields).items()},
            "bodies": {path: fields_of(kind, refused) for path, (kind, refused) in _BODIES.items()},
            "objects": {name: fields_of(kind, refused) for name, (kind, refused) in _OBJECTS.items()},
        }
    )


def features(gateway: Gateway) -> dict[str, Any]:
    """What the model, the replicas and the schema have."""
    model, forms = gateway.fleet.serving().model, gateway.pipeline.forms
    return {
        "chat": model.has_chat_template,
        "tools": forms.calls(model) is not None,
        "tool_choice": ["none", "auto", "required", "function"],
        "tool_parser": forms.tool_parser if forms.tool_parser != "auto" else model.tool_call_format or None,
        "reasoning_parser": forms.reasoning_parser if forms.reasoning_parser != "auto" else model.reasoning_format or None,
        "template_arguments": list(model.template_arguments),
        "priority": model.serves_by_priority,
        "response_format": True,
        # Of completions.
        "echo": True,
        "prompt_logprobs": True,
        "embeddings": bool(model.hidden_size),
        "beam_search": True,
        "contrastive_search": bool(model.hidden_size),
        "system2_attention": model.has_chat_template,
        **{name: name not in REFUSED for name in ("suffix", "best_of", "audio")},
    }


def fields_of(kind: type[BaseModel], refused: Refused) -> dict[str, Any]:
    """The fields of an object: accepted, accepted though nothing comes of them with the reason, refused with the values they may have."""
    idle = {name: extra[WITHOUT_EFFECT] for name, field in kind.model_fields.items() if isinstance(extra := field.json_schema_extra, dict)}
    return {
        "accepted": [name for name in kind.model_fields if name not in idle],
        "without_effect": idle,
        "refused": {name: [None, *values] for name, values in refused.items() if name not in kind.model_fields},
    }
