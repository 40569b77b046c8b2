"""Grammars of clients as llguidance is to read them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from llguidance import LLMatcher

from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.json_schema import held_schema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

# JSON comes in one line, with a space behind commas and colons or without. A model that is bound to a form may not leave it for white space without
# end, as small ones do where they may. No character is written by its number: a name written so would not be taken for the property that it is.
_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": r",\x20?",
    "key_separator": r":\x20?",
    "json_allowed_escapes": 'nrbtf\\"',
}
# Where Lark's syntax, as llguidance has it, lets a JSON schema begin.
_EMBEDDED = re.compile(r"%json\s*(?=\{)")


def source_of(kind: str, text: str) -> str:
    """What llguidance compiles.

    Args:
        kind: "json_schema", "regex" or "lark".
        text: as the client wrote it.

    Raises:
        CannotHold: it is a JSON schema that cannot be held, or has one.
    """
    if kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(json.dumps(held_schema(text)), overrides=_JSON))
    if kind == "regex":
        return str(LLMatcher.grammar_from_regex(text))
    return str(LLMatcher.grammar_from_lark(_with_held_schemas(text)))


def reworded(error: str) -> str:
    """What llguidance says of a grammar, in words of whoever wrote it."""
    if "coerce_one_of" in error:
        return "oneOf is not supported where a value may fit two of its options; anyOf is, and so are options told apart by type or a required constant"
    return error


def _with_held_schemas(lark: str) -> str:
    """A grammar in Lark's syntax whose JSON schemas are written anew."""
    decoder, pieces, place = json.JSONDecoder(), [], 0
    while (found := _EMBEDDED.search(lark, place)) is not None:
        try:
            schema, end = decoder.raw_decode(lark, found.end())
        except (ValueError, RecursionError):
            raise CannotHold("what follows %json is no JSON") from None
        held = held_schema(json.dumps(schema))
        held = {**held, "x-guidance": _JSON} if isinstance(held, dict) else held
        pieces += [lark[place : found.end()], json.dumps(held)]
        place = end
    return "".join(pieces) + lark[place:]
