"""Counts what the lists and objects of a request's body hold, before anything is made of their items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.flow.limits import Limits
from triserve.rpc import limits as contract
from triserve.rpc.errors import InvalidRequest

# Field, what its items are called, and the limit's name. The token ids of a prompt are bounded with the body's values.
_COUNTED = (
    ("messages", "messages", "max_messages"),
    ("input", "items", "max_messages"),
    ("stop", "strings", "max_stop_strings"),
    ("stop_sequences", "strings", "max_stop_strings"),
    ("stop_token_ids", "ids", "max_stop_token_ids"),
    ("logit_bias", "entries", "max_logit_bias"),
    ("chat_template_kwargs", "entries", "max_template_arguments"),
)
# Likewise, with the limit itself.
_COUNTED_BY_CONTRACT = (
    ("tools", "tools", contract.MAX_TOOLS),
    ("allowed_token_ids", "ids", contract.MAX_LISTED_TOKEN_IDS),
    ("banned_token_ids", "ids", contract.MAX_LISTED_TOKEN_IDS),
    ("bad_words", "strings", contract.MAX_BAD_WORD_STRINGS),
    ("dry_sequence_breakers", "strings", contract.MAX_DRY_BREAKERS),
)


def check_counts(body: Mapping[str, Any], limits: Limits) -> None:
    """Refuses a list or an object with too many items, of whatever kind they are.

    Raises:
        InvalidRequest: naming the field and the limit.
    """
    for field, items, limit in _COUNTED:
        _check(field, body.get(field), items, getattr(limits, limit))
    for field, items, most in _COUNTED_BY_CONTRACT:
        _check(field, body.get(field), items, most)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        _check("prompt", prompt, "prompts", limits.max_prompts)


def _check(field: str, value: object, items: str, limit: int) -> None:
    if isinstance(value, list | dict) and len(value) > limit:
        raise InvalidRequest(f"{field} has {len(value)} {items}, the limit is {limit}", field=field)
