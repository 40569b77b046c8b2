"""Keeps the special tokens a template writes apart from the same characters in a user's text.

Two rules do it. Special tokens answer to **aliases**, strings that nobody outside the process can know, so that no text becomes
one by itself (`tokenizer_definition` renames them). And what users wrote goes through the template with a **mark**, one
noncharacter that occurs in no input, inside every stretch that is a special token or could grow into one; whatever the template
then prints without a mark is its own and gets the alias. Marks leave the text before it is encoded.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import NamedTuple

# Unicode reserves the noncharacters for use inside a program. Aliases are spelt with 32 of them, the other 34 can be marks.
ALIAS_LETTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
MARKS = tuple(chr(plane * 0x10000 + low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_SALT_LETTERS = 26  # 130 bits
_WORD = re.compile(r"\w")

_Tree = dict[str, "_Tree"]
_END = ""


class AddedToken(NamedTuple):
    """An entry of `added_tokens` in tokenizer.json, as far as matching needs it."""

    content: str
    special: bool
    single_word: bool
    normalized: bool


class SpecialTokens:
    """Finds special tokens in what users wrote and in what a template printed.

    Special tokens of a single character are left alone: they are text wherever they stand.

    Args:
        tokens: the tokenizer's added tokens.
        framing: those that are special to the template alone: it frames turns with them, though the tokenizer does not mark them.
        salt: makes the aliases unknown to users; from `new_salt`.
    """

    def __init__(self, tokens: Sequence[AddedToken], *, framing: Collection[str] = (), salt: str) -> None:
        special = [token.content for token in tokens if token.special and len(token.content) > 1]
        ours = [token for token in tokens if len(token.content) > 1 and (token.special or token.content in framing)]
        self.aliases: Mapping[str, str] = {token.content: salt + _spelt(index) for index, token in enumerate(ours)}
        self._single_word = frozenset(token.content for token in ours if token.single_word)
        # The longest match wins, as in the tokenizer, where tokens that are not special compete too.
        rivals = [token.content for token in tokens if not token.special and not token.normalized]
        self._printed = re.compile(_any_of([*self.aliases, *rivals]))
        self._special = _Names(special)
        self._all = _Names(list(self.aliases))

    def break_points(self, text: str, cuts: Collection[str] = (), *, model_s_own: bool = False) -> list[int]:
        """Where a mark must go so that nothing in the text is, or becomes with what a template puts beside it, a special token.

        Args:
            text: one string a user wrote.
            cuts: strings the template may cut out of it, which joins what stood on either side.
            model_s_own: whether the model may have written it, or its operator: then framing tokens keep their meaning.

        Returns:
            Ascending indices to insert at; empty for nearly every text. Space around the text is left free of marks, so that a
            template that trims still does.
        """
        return (self._special if model_s_own else self._all).break_points(text, cuts)

    def to_aliases(self, printed: str, mark: str | None) -> str:
        """The text to encode: the template's own special tokens as aliases, the marks taken out.

        Args:
            printed: what the template printed.
            mark: the mark in users' strings; None = none of them needed one.
        """
        aliased = self._printed.sub(lambda match: self._alias_of(match, printed), printed)
        return aliased.replace(mark, "") if mark else aliased

    def _alias_of(self, match: re.Match[str], printed: str) -> str:
        name = match[0]
        if name in self._single_word:
            beside = printed[match.start() - 1 : match.start()] if match.start() else "", printed[match.end() : match.end() + 1]
            if any(_WORD.match(neighbour) for neighbour in beside):
                return name
        return self.aliases.get(name, name)


class _Names:
    """Finds where any of some names stands in a text, or could come to stand."""

    def __init__(self, names: Sequence[str]) -> None:
        self._anywhere = re.compile(f"(?={_any_of(names)})")
        self._openings = frozenset(name[:end] for name in names for end in range(1, len(name)))
        self._endings = frozenset(name[start:] for name in names for start in range(1, len(name)))
        self._reach = max(map(len, names), default=1)

    def break_points(self, text: str, cuts: Collection[str]) -> list[int]:
        points = {match.start() + 1 for match in self._anywhere.finditer(text)}
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        sizes = range(1, min(self._reach, end - start + 1))
        points.update(end - size + 1 for size in sizes if text[end - size : end] in self._openings)
        if any(text[start : start + size] in self._endings for size in sizes):
            points.add(start)
        found = [cut for cut in cuts if cut in text]
        if found and self._count(reduce(lambda rest, cut: rest.replace(cut, ""), found, text)) > self._count(text):
            points.update(edge for cut in found for match in re.finditer(re.escape(cut), text) for edge in match.span())
        return sorted(points)

    def _count(self, text: str) -> int:
        return sum(1 for _ in self._anywhere.finditer(text))


def new_salt() -> str:
    """A fresh secret to make aliases of."""
    return "".join(secrets.choice(ALIAS_LETTERS) for _ in range(_SALT_LETTERS))


def _spelt(index: int) -> str:
    """A number below 2**20, as four letters of aliases: no alias begins another."""
    return "".join(ALIAS_LETTERS[index >> shift & 31] for shift in (15, 10, 5, 0))


def pick_mark(texts: Sequence[str], *, never: str) -> str | None:
    """A noncharacter that is in none of the texts; None if they hold them all.

    Args:
        texts: everything users wrote that will be printed beside it.
        never: characters that may not be chosen.
    """
    return next((mark for mark in MARKS if mark not in never and not any(mark in text for text in texts)), None)


def insert_mark(text: str, mark: str, points: Sequence[int]) -> str:
    """The text with a mark at each of the ascending indices."""
    return mark.join(text[start:end] for start, end in pairwise((0, *points, len(text))))


def _any_of(words: Sequence[str]) -> str:
    """A pattern that finds the longest of the words, as a tree of their letters: thousands of words cost no more than one."""
    if not words:
        return r"(?!)"
    tree: _Tree = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[_END] = {}
    return _branch(tree)


def _branch(node: _Tree) -> str:
    tails = [re.escape(letter) + _branch(below) for letter, below in node.items() if letter != _END]
    if not tails:
        return ""
    return f"(?:{'|'.join(tails)}){'?' if _END in node else ''}"
