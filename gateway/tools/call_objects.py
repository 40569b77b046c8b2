"""Reads tool calls that are JSON objects, `{"name": "f", "arguments": {...}}`, and arguments alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection

from gateway.tools.characters import END, Characters, NotACall, Reading
from gateway.tools.findings import Findings

_ARGUMENTS = ("arguments", "parameters")
# What models write beside them. Any other name makes an object one that only looks like a call.
_OTHERS = ("type", "id")
MAX_NAME_CHARS = 128
# A string that was cut off may end within an escape of so many characters.
_ESCAPE_CHARS = 12


def read_call(chars: Characters, out: Findings, known: Collection[str] | None) -> Reading[None]:
    """Reads one object. Until it is sure to be a call nothing is told of it; then its arguments are as they come.

    Args:
        chars: at the opening bracket, recorded.
        out: what is found.
        known: names that a call may have; None = any.

    Raises:
        NotACall: it is none, or it stops being one; `out` has what it was till then.
    """
    name: str | None = None
    early: list[str] = []
    if (yield from chars.after_space()) != "{":
        raise NotACall
    while (character := (yield from chars.after_space())) != "}":
        if character == ",":
            continue
        key = yield from _read_key(chars, character)
        if key == "name":
            name = yield from _read_name(chars, known)
        elif key in _ARGUMENTS and name is not None:
            chars.commit()
            out.begin_call(name)
            yield from read_arguments(chars, out.argue)
            yield from _read_end(chars)
            return
        elif key in _ARGUMENTS:
            yield from read_arguments(chars, early.append)
        elif key in _OTHERS:
            yield from read_arguments(chars, lambda _: None)
        else:
            raise NotACall
    if name is None:
        raise NotACall
    chars.commit()
    out.begin_call(name)
    out.argue("".join(early) or "{}")


def read_calls(chars: Characters, out: Findings, known: Collection[str] | None) -> Reading[None]:
    """Reads one object or more, with commas or semicolons between them. See `read_call`."""
    while True:
        yield from read_call(chars, out, known)
        if not (yield from _comes_another(chars)):
            return


def read_list(chars: Characters, out: Findings, known: Collection[str] | None) -> Reading[None]:
    """Reads a list of objects. See `read_call`."""
    if (yield from chars.after_space()) != "[":
        raise NotACall
    while True:
        yield from read_call(chars, out, known)
        if not (yield from _comes_another(chars)):
            break
    if (yield from chars.after_space()) != "]":
        raise NotACall


def read_arguments(chars: Characters, emit: Callable[[str], None]) -> Reading[None]:
    """Reads a JSON value as the model wrote it: that its brackets and quotes are balanced is all that is looked at.

    A string is taken for JSON in a string; null and an empty string for no arguments.

    Raises:
        NotACall: the text has ended in it.
    """
    character = yield from chars.after_space()
    if character in ("{", "["):
        yield from _read_balanced(chars, character, emit)
    elif character == '"':
        emit((yield from _read_string(chars, is_cut=True)) or "{}")
    else:
        word = ""
        while character not in (",", "}", "]", END) and not character.isspace():
            word += character
            character = yield from chars.next()
        chars.put_back(character)
        emit("{}" if word == "null" else word)
    if character == END:
        raise NotACall


def _read_balanced(chars: Characters, character: str, emit: Callable[[str], None]) -> Reading[None]:
    depth, in_string, is_escaped = 0, False, False
    while character != END:
        emit(character)
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = not is_escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
            if not depth:
                return
        character = yield from chars.next()
    raise NotACall


def _read_key(chars: Characters, character: str) -> Reading[str]:
    """A name in an object, whose first character is given, and the colon behind it."""
    if character != '"':
        raise NotACall
    key = yield from _read_string(chars)
    if (yield from chars.after_space()) != ":":
        raise NotACall
    return key


def _read_name(chars: Characters, known: Collection[str] | None) -> Reading[str]:
    if (yield from chars.after_space()) != '"':
        raise NotACall
    name = yield from _read_string(chars)
    if not 1 <= len(name) <= MAX_NAME_CHARS or (known is not None and name not in known):
        raise NotACall
    return name


def _read_string(chars: Characters, *, is_cut: bool = False) -> Reading[str]:
    """The string behind an opening quote; with `is_cut`, of one that the end of the text has cut off what there is.

    Raises:
        NotACall: it is no JSON string, or cut off.
    """
    raw: list[str] = []
    is_escaped = False
    while (character := (yield from chars.next())) != '"' or is_escaped:
        if character == END:
            if is_cut:
                return _decoded_beginning("".join(raw))
            raise NotACall
        raw.append(character)
        is_escaped = not is_escaped and character == "\\"
    return _decoded("".join(raw))


def _decoded(raw: str) -> str:
    try:
        text: str = json.loads(f'"{raw}"', strict=False)
        text.encode()
    except ValueError:
        raise NotACall from None
    return text


def _decoded_beginning(raw: str) -> str:
    for left_out in range(min(_ESCAPE_CHARS, len(raw)) + 1):
        try:
            text = _decoded(raw[: len(raw) - left_out])
        except NotACall:
            continue
        return text
    return ""


def _read_end(chars: Characters) -> Reading[None]:
    """What an object has behind its arguments."""
    while (character := (yield from chars.after_space())) != "}":
        if character != ",":
            yield from _read_key(chars, character)
            yield from read_arguments(chars, lambda _: None)


def _comes_another(chars: Characters) -> Reading[bool]:
    """Whether another object follows, recorded from what stands before it on; if not, nothing was read."""
    chars.record()
    read = ""
    while (character := (yield from chars.next())).isspace():
        read += character
    if character in (",", ";"):
        read += character
        while (character := (yield from chars.next())).isspace():
            read += character
    if character == "{":
        chars.put_back("{")
        return True
    chars.put_back(read + character)
    chars.commit()
    return False
