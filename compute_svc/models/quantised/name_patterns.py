"""Regular expressions of the kinds that checkpoints name projections with, matched in time that grows with name and pattern alone.

Python's own can be made to run for hours by whoever writes the pattern. These know characters, classes, ".", "*", "+" and "?" behind one of them,
"^", "$", and alternatives in parentheses, which may not be repeated.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from compute_svc.models.config_fields import shown
from compute_svc.models.weights import CheckpointError

_LONGEST_PATTERN = 500
_MOST_SEQUENCES = 64
_MOST_PARENTHESES = 16

_TOKEN = re.compile(r"\\.|\[\^?[^\[\]\\]+\]|\(\?:|[()|*+?^$.]|[^\\\[\]{}()|*+?^$.]")
_ESCAPES = frozenset("dws")
_ASCII = tuple(map(chr, range(128)))


class _Step(NamedTuple):
    """Matches one character, or any number of them, or an end.

    Attributes:
        characters: What it may be, in ASCII; empty without others = the end of the name.
        others: Whether it may be any character beyond ASCII.
        may_miss: Whether it may be left out.
        repeats: Whether more of them may follow.
    """

    characters: frozenset[str]
    others: bool = False
    may_miss: bool = False
    repeats: bool = False

    @property
    def is_end(self) -> bool:
        """Whether it matches the end of the name alone."""
        return not (self.characters or self.others)

    def accepts(self, character: str) -> bool:
        """Whether it may be this."""
        return character in self.characters or (self.others and character > _ASCII[-1])


_Sequence = tuple[_Step, ...]


class NamePattern:
    """One such expression; matches names that begin as it says.

    Args:
        pattern: The expression.
        place: Where it is from, for messages.

    Raises:
        CheckpointError: It is too long, or has something that is not known here.
    """

    def __init__(self, pattern: str, place: str) -> None:
        self._problem = CheckpointError(
            f"{place}: the pattern {shown(pattern)} is not supported; supported are at most {_LONGEST_PATTERN} characters of letters, classes, "
            f"., *, +, ?, ^, $, and alternatives in parentheses that are not repeated, {_MOST_SEQUENCES} in all"
        )
        tokens = [match.group() for match in _TOKEN.finditer(pattern)]
        too_deep = sum(token in ("(", "(?:") for token in tokens) > _MOST_PARENTHESES
        if len(pattern) > _LONGEST_PATTERN or too_deep or "".join(tokens) != pattern:
            raise self._problem
        self._tokens = tokens[::-1]
        self._sequences = self._alternatives()
        if self._tokens:
            raise self._problem

    @property
    def num_steps(self) -> int:
        """What a match costs for each character of a name, at most."""
        return sum(map(len, self._sequences))

    def matches(self, name: str) -> bool:
        """Whether the name begins so, or is so where the pattern ends in "$"."""
        return any(_matches(steps, name) for steps in self._sequences)

    def _alternatives(self) -> list[_Sequence]:
        found = self._sequence()
        while self._tokens and self._tokens[-1] == "|":
            self._tokens.pop()
            found += self._sequence()
            if len(found) > _MOST_SEQUENCES:
                raise self._problem
        return found

    def _sequence(self) -> list[_Sequence]:
        """What one alternative may be, written out."""
        found: list[_Sequence] = [()]
        while self._tokens and self._tokens[-1] not in ("|", ")"):
            token = self._tokens.pop()
            if token in ("(", "(?:"):
                inner = self._alternatives()
                if not self._tokens or self._tokens.pop() != ")" or (self._tokens and self._tokens[-1] in "*+?"):
                    raise self._problem
            elif token == "^":
                if any(found):
                    raise self._problem
                continue
            else:
                inner = [self._steps(token)]
            if len(found) * len(inner) > _MOST_SEQUENCES:
                raise self._problem
            found = [left + right for left in found for right in inner]
        return found

    def _steps(self, token: str) -> _Sequence:
        if token == "$":
            return (_Step(frozenset()),)
        if token in "*+?" or (token[0] == "\\" and token[1].isalnum() and token[1] not in _ESCAPES):
            raise self._problem
        try:
            one = re.compile(token if token == "." or token[0] in "\\[" else re.escape(token), re.DOTALL | re.ASCII)
        except re.error as error:
            raise self._problem from error
        quantity = self._tokens.pop() if self._tokens and self._tokens[-1] in ("*", "+", "?") else ""
        once = _Step(frozenset(filter(one.match, _ASCII)), others=token == "." or token.startswith("[^"))
        many = once._replace(may_miss=True, repeats=True)
        return {"": (once,), "*": (many,), "+": (once, many), "?": (once._replace(may_miss=True),)}[quantity]


def _matches(steps: _Sequence, name: str) -> bool:
    """Follows all ways at once: positions in the pattern that the name may have come to."""
    reached = _with_missed(steps, {0})
    for character in name:
        if len(steps) in reached:
            return True
        following = set()
        for position in reached:
            step = steps[position]
            if step.accepts(character):
                following.add(position + 1)
                if step.repeats:
                    following.add(position)
        reached = _with_missed(steps, following)
    return any(all(step.is_end or step.may_miss for step in steps[position:]) for position in reached)


def _with_missed(steps: _Sequence, positions: set[int]) -> set[int]:
    found = set(positions)
    for position in range(min(positions, default=len(steps)), len(steps)):
        if position in found and steps[position].may_miss:
            found.add(position + 1)
    return found
