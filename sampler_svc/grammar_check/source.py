"""Grammars of clients as llguidance is to read them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llguidance import LLMatcher, LLParserLimits

from sampler_svc.grammar_check.errors import CannotHold
from sampler_svc.grammar_check.json_schema import held_schema
from sampler_svc.grammar_check.markers import marker_rules

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
# What llguidance says of its limits.
_TOO_COMPLEX = ("too many", "max is")
# Where Lark's syntax, as llguidance has it, lets a JSON schema begin.
_EMBEDDED = re.compile(r"%json\s*(?=\{)")


class Written(NamedTuple):
    """A grammar as it was written; see `Grammar` of the contract.

    Attributes:
        kind: "json_schema", "regex" or "lark".
        text: in the language of its kind.
        frame: what stands around it; empty = nothing.
        markers: of a Lark grammar.
        frame_markers: of the frame.
        lenient: whether schemas within Lark grammars may be held in part.
    """

    kind: str
    text: str
    frame: str = ""
    markers: tuple[str, ...] = ()
    frame_markers: tuple[str, ...] = ()
    lenient: bool = False


def source_of(written: Written, special_ids: Mapping[str, int]) -> str:
    """What llguidance compiles.

    Args:
        written: the grammar.
        special_ids: special tokens by their names, which markers may be.

    Raises:
        CannotHold: it is a JSON schema that cannot be held, or has one.
    """
    source = _text_source(written, special_ids)
    if not written.frame:
        return source
    frame = _with_held_schemas(written.frame, lenient=written.lenient) + marker_rules(written.frame_markers, special_ids)
    text = json.loads(source)["grammars"][0] if written.kind != "lark" else {"lark_grammar": source}
    return json.dumps({"grammars": [{"name": "frame", "lark_grammar": frame}, {**text, "name": "text"}]})


def _text_source(written: Written, special_ids: Mapping[str, int]) -> str:
    if written.kind == "json_schema":
        return str(LLMatcher.grammar_from_json_schema(json.dumps(held_schema(written.text)), overrides=_JSON))
    if written.kind == "regex":
        return str(LLMatcher.grammar_from_regex(written.text))
    return str(
        LLMatcher.grammar_from_lark(_with_held_schemas(written.text, lenient=written.lenient) + marker_rules(written.markers, special_ids))
    )


def limits_of(written: Written, limits: Mapping[str, Any]) -> LLParserLimits:
    """What going on in a grammar may cost, as llguidance counts it.

    Args:
        written: the grammar.
        limits: of all, by name.
    """
    # A mask holds up all who share the sampler's stream. Of JSON and expressions each text is read in one way or so; a grammar of a client's own may
    # be read in ever more, and 250 items in a row are where its masks begin to take tens of milliseconds. With markers it is one of calls, of which
    # there may be so many that each has a few items.
    return LLParserLimits(**{**limits, **({"max_items_in_row": 250} if written.kind == "lark" and not written.markers else {})})


def reworded(error: str) -> str:
    """What llguidance says of a grammar, in words of whoever wrote it."""
    if "coerce_one_of" in error:
        return "oneOf is not supported where a value may fit two of its options; anyOf is, and so are options told apart by type or a required constant"
    return f"it is too complex: {error}" if any(sign in error.lower() for sign in _TOO_COMPLEX) else error


def _with_held_schemas(lark: str, *, lenient: bool) -> str:
    """A grammar in Lark's syntax whose JSON schemas are written anew."""
    decoder, pieces, place = json.JSONDecoder(), [], 0
    while (found := _EMBEDDED.search(lark, place)) is not None:
        try:
            schema, end = decoder.raw_decode(lark, found.end())
        except (ValueError, RecursionError):
            raise CannotHold("what follows %json is no JSON") from None
        pieces += [lark[place : found.end()], json.dumps(_embedded(schema, lenient=lenient))]
        place = end
    return "".join(pieces) + lark[place:]


def _embedded(schema: dict[str, Any], *, lenient: bool) -> dict[str, Any] | bool:
    """A schema with how it is to be read."""
    said = schema.get("x-guidance")
    try:
        held = held_schema(json.dumps(schema))
    except CannotHold:
        if not (lenient and isinstance(said, dict) and said.get("lenient") is True):
            raise
        return {**schema, "x-guidance": {**_JSON, "lenient": True}}
    return {**held, "x-guidance": _JSON} if isinstance(held, dict) else held
