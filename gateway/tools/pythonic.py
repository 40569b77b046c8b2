"""Reads tool calls that are a list of calls as Python writes them, `[f(a=1), g()]`; their arguments become JSON."""

from __future__ import annotations

import json
from collections.abc import Collection

from gateway.tools.call_objects import MAX_NAME_CHARS
from gateway.tools.characters import END, Characters, NotACall, Reading
from gateway.tools.findings import Findings
from gateway.tools.python_literal import NotALiteral, json_of

_OPENING, _CLOSING = "([{", ")]}"


def read_python_calls(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    """Reads a list of calls. Each is told of once its name and that of its first argument are there, and each argument when it is whole.

    Args:
        chars: at the opening bracket, recorded.
        out: what is found.
        known: names that a call may have.

    Raises:
        NotACall: it is none, or it stops being one; `out` has what it was till then.
    """
    if (yield from chars.after_space()) != "[":
        raise NotACall
    while True:
        yield from _read_call(chars, out, known)
        chars.record()
        character = yield from chars.after_space()
        if character == "]":
            chars.commit()
            return
        if character != ",":
            raise NotACall


def _read_call(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    name, character = yield from _read_word(chars, ".")
    if character != "(" or name not in known:
        raise NotACall
    is_first = True
    while True:
        word, character = yield from _read_word(chars)
        if not word and character == ")":
            break
        if not word or character != "=":
            raise NotACall
        if is_first:
            chars.commit()
            out.begin_call(name)
        value, character = yield from _read_value(chars)
        out.argue(f"{'{' if is_first else ', '}{json.dumps(word)}: {value}")
        is_first = False
        if character == ")":
            break
    if is_first:
        chars.commit()
        out.begin_call(name)
    out.argue("{}" if is_first else "}")


def _read_word(chars: Characters, beside: str = "") -> Reading[tuple[str, str]]:
    """A name, and the first character behind it and space."""
    word = ""
    character = yield from chars.after_space()
    while character.isalnum() or (character and character in "_" + beside):
        word += character
        if len(word) > MAX_NAME_CHARS:
            raise NotACall
        character = yield from chars.next()
    if character.isspace():
        character = yield from chars.after_space()
    return word, character


def _read_value(chars: Characters) -> Reading[tuple[str, str]]:
    """A value as JSON, and the comma or bracket behind it. What is no literal is taken for a string.

    Raises:
        NotACall: the text has ended in it.
    """
    raw: list[str] = []
    depth, quote, is_escaped = 0, "", False
    while (character := (yield from chars.next())) != END:
        if quote:
            if character == quote and not is_escaped:
                quote = ""
            is_escaped = not is_escaped and character == "\\"
        elif character in "'\"":
            quote = character
        elif character in _OPENING:
            depth += 1
        elif not depth and character in ",)":
            text = "".join(raw).strip()
            try:
                return json_of(text), character
            except NotALiteral:
                return json.dumps(text, ensure_ascii=False), character
        elif character in _CLOSING:
            depth = max(0, depth - 1)
        raw.append(character)
    raise NotACall
