"""Which fields of OpenAI's and others' APIs are refused, and with which values they ask for nothing and are let through."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from triserve.rpc.errors import InvalidRequest

MAX_SHOWN_CHARS = 128

# Field, and the values besides null with which it asks for nothing. What matters most to the client's author comes first: of several
# refused fields that one is named.
Refused: TypeAlias = Mapping[str, tuple[object, ...]]

REFUSED: Refused = {
    # Another kind of answer.
    # Completions have none of these; chats know them.
    "tools": ([],),
    "functions": ([],),
    "grammar": ("",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    # Another prompt.
    "echo": (False,),
    "suffix": ("",),
    "prompt_embeds": (),
    "documents": ([],),
    "chat_template": (),
    "truncation_side": ("left",),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    # Of completions, which have no template.
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "system2_attention": (False,),
    "chat_template_kwargs": ({},),
    # Other tokens.
    # Of chats.
    "max_completion_tokens": (),
    "reasoning_effort": (),
    "thinking_token_budget": (),
    "repetition_detection": (),
    "vllm_xargs": ({},),
    "kv_transfer_params": (),
    "dry_penalty_last_n": (-1,),
    "logits_processors": ([],),
    "verbosity": ("medium",),
    # Another form of the answer.
    "top_logprobs": (),
    "include_reasoning": (True,),
    "detokenize": (True,),
    "request_id": (),
    "cache_salt": (),
}
# What clients leave in messages that they send back.
REFUSED_IN_MESSAGE: Refused = {
    "function_call": (),
    "audio": (),
    "refusal": ("",),
    "annotations": ([],),
    "reasoning": ("",),
}
REFUSED_IN_STREAM_OPTIONS: Refused = {"include_obfuscation": (False,)}


def without_idle(body: dict[str, Any], refused: Refused, *, known: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The object without nulls and without fields that ask for nothing.

    Args:
        body: not changed.
        refused: of its kind.
        known: fields that are not refused.
        where: what stands before a field's name in errors.

    Raises:
        InvalidRequest: a field asks for what is not done, or is unknown; names it.
    """
    for name, idle in refused.items():
        if name in body and name not in known and not _is_idle(body[name], idle):
            raise InvalidRequest(f"{where}{name} is not supported{_but(idle)}", field=f"{where}{name}")
    kept = {}
    for name, value in body.items():
        if name in known:
            if value is not None:
                kept[name] = value
        elif name not in refused:
            raise unknown(where + name[:MAX_SHOWN_CHARS])
    return kept


def unknown(field: str) -> InvalidRequest:
    """The refusal of a field that nobody knows."""
    return InvalidRequest(f"Unknown field: {field}", field=field)


def _is_idle(value: object, idle: tuple[object, ...]) -> bool:
    return value is None or any(type(value) is type(one) and value == one for one in idle)


def _but(idle: tuple[object, ...]) -> str:
    """What may be said after all; of an empty value nobody needs to be told."""
    said = [one for one in idle if one or one is False]
    return f", it may be {' or '.join(map(json.dumps, said))}" if said else ""
