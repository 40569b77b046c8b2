"""Turns literals of Python into JSON: texts, numbers, True, False, None, lists, tuples and dictionaries. JSON is a literal too, and stays as it is."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

_MAX_DEPTH = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_WORD = re.compile(r"[A-Za-z]{1,5}")
_SPACE = re.compile(r"\s*")
_PLAIN = {"'": re.compile(r"[^'\\]*"), '"': re.compile(r'[^"\\]*')}
_ESCAPES = {
    "\\": "\\",
    "'": "'",
    '"': '"',
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "a": "\a",
    "v": "\v",
    "0": "\0",
    "/": "/",
    "\n": "",
}
_CODES = {"x": 2, "u": 4, "U": 8}


class NotALiteral(Exception):
    """It is something else."""


def json_of(text: str) -> str:
    """The literal as JSON.

    Raises:
        NotALiteral: it is none.
    """
    try:
        json.loads(text, parse_constant=_refuse)
        return text
    except (ValueError, RecursionError):
        pass
    try:
        written = json.dumps(_Literal(text).whole(), ensure_ascii=False, allow_nan=False)
        # Half of a surrogate pair is no text.
        written.encode()
        return written
    except ValueError:
        raise NotALiteral from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


class _Literal:
    """A literal and how much of it was read."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0

    def whole(self) -> Any:
        """Its value."""
        value = self._value(0)
        if self._peek():
            raise NotALiteral
        return value

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        space = _SPACE.match(self._text, self._place)
        assert space is not None, "no space is some too"
        self._place = space.end()
        return self._text[self._place : self._place + 1]

    def _takes(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._place += 1
        return True

    def _matched(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._place)
        if found is None:
            raise NotALiteral
        self._place = found.end()
        return found[0]

    def _value(self, depth: int) -> Any:
        character = self._peek()
        if depth > _MAX_DEPTH:
            raise NotALiteral
        if character in ("'", '"'):
            return self._string()
        if self._takes("["):
            return self._items("]", depth)
        if self._takes("("):
            return self._items(")", depth)
        if self._takes("{"):
            return self._entries(depth)
        if character.isalpha():
            word = self._matched(_WORD)
            if word not in _WORDS:
                raise NotALiteral
            return _WORDS[word]
        number = self._matched(_NUMBER)
        return int(number) if number.lstrip("+-").isdigit() else float(number)

    def _items(self, end: str, depth: int) -> list[Any]:
        items = []
        while not self._takes(end):
            items.append(self._value(depth + 1))
            if not self._takes(",") and self._peek() != end:
                raise NotALiteral
        return items

    def _entries(self, depth: int) -> dict[str, Any]:
        entries = {}
        while not self._takes("}"):
            if self._peek() not in ("'", '"'):
                raise NotALiteral
            key = self._string()
            if not self._takes(":"):
                raise NotALiteral
            entries[key] = self._value(depth + 1)
            if not self._takes(",") and self._peek() != "}":
                raise NotALiteral
        return entries

    def _string(self) -> str:
        quote = self._text[self._place]
        self._place += 1
        parts = []
        while True:
            parts.append(self._matched(_PLAIN[quote]))
            character = self._text[self._place : self._place + 1]
            self._place += 1
            if character == quote:
                return "".join(parts)
            if not character:
                raise NotALiteral
            parts.append(self._escape())

    def _escape(self) -> str:
        """What stands behind a backslash. One that escapes nothing is text, as in Python."""
        kind = self._text[self._place : self._place + 1]
        self._place += 1
        if kind in _CODES:
            digits = self._text[self._place : self._place + _CODES[kind]]
            self._place += len(digits)
            try:
                return chr(int(digits, 16)) if len(digits) == _CODES[kind] and digits.isalnum() else "\\" + kind + digits
            except (ValueError, OverflowError):
                return "\\" + kind + digits
        return _ESCAPES.get(kind, "\\" + kind)
