"""Finds stop strings in a text that arrives in pieces, and holds back what may yet become one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

# States are numbered as they are made; of all of them the root alone is false.
_ROOT = 0


class StopPatterns:
    """Stop strings as one automaton, so that a character costs the same however many there are.

    A state is the longest end of the text that is a beginning of some stop string.

    Args:
        stops: not empty, no empty string among them.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._next: dict[tuple[int, str], int] = {}
        self._fail = [_ROOT]
        self._depth = [0]
        self.stop_at: list[str | None] = [None]
        """By state, the longest stop string that ends there."""
        children: list[list[tuple[str, int]]] = [[]]
        for stop in stops:
            state = _ROOT
            for character in stop:
                following = self._next.get((state, character))
                if following is None:
                    following = self._next[state, character] = len(self._fail)
                    children[state].append((character, following))
                    children.append([])
                    self._fail.append(_ROOT)
                    self._depth.append(self._depth[state] + 1)
                    self.stop_at.append(None)
                state = following
            self.stop_at[state] = stop
        self._link(children)
        self.held_at = self._held(children)
        """By state, how many of the text's last characters may yet become part of a stop string."""

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (following := self._next.get((state, character))) is None:
            if not state:
                return _ROOT
            state = self._fail[state]
        return following

    def _link(self, children: list[list[tuple[str, int]]]) -> None:
        """Gives each state its fail link: the longest proper end of it that is a state too. Shorter states come first."""
        queue = deque(child for _, child in children[_ROOT])
        while queue:
            state = queue.popleft()
            for character, child in children[state]:
                self._fail[child] = self.step(self._fail[state], character)
                queue.append(child)
            if self.stop_at[state] is None:
                self.stop_at[state] = self.stop_at[self._fail[state]]

    def _held(self, children: list[list[tuple[str, int]]]) -> list[int]:
        held = []
        for state in range(len(children)):
            # The end of a stop string that begins no longer one holds nothing back itself, but a shorter end of it may.
            while state and not children[state]:
                state = self._fail[state]
            held.append(self._depth[state])
        return held


class Matched(NamedTuple):
    """What became of one piece of text."""

    text: str  # what can be sent now
    stop: str | None  # the stop string that ended the text, right behind it or at its end; None = none


class StopMatcher:
    """Watches one text.

    The text ends at the stop string that is complete first; of those complete at the same character the longest counts. So
    the outcome does not depend on how the text is cut into pieces.

    Args:
        patterns: the stop strings.
        includes_stop: whether what is sent ends behind the stop string and not before it.
    """

    __slots__ = ("_held", "_hidden", "_includes_stop", "_patterns", "_state")

    def __init__(self, patterns: StopPatterns, *, includes_stop: bool = False) -> None:
        self._patterns = patterns
        self._includes_stop = includes_stop
        self._state = _ROOT
        self._held = ""
        # By character of what is held, whether it is never sent; empty = none of it is hidden.
        self._hidden: list[bool] = []

    def feed(self, text: str, *, armed: bool, hidden: bool = False) -> Matched:
        """Takes the next piece.

        Args:
            text: may be empty.
            armed: whether a stop string that is complete in this piece counts; if not, it is text like any other.
            hidden: whether the piece is matched and never sent, as the name of a special token.
        """
        patterns, state = self._patterns, self._state
        before = len(self._held)
        whole = self._held + text
        if hidden or self._hidden:
            self._hidden = (self._hidden or [False] * before) + [hidden] * len(text)
        for index, character in enumerate(text):
            state = patterns.step(state, character)
            stop = patterns.stop_at[state]
            if stop is not None and armed:
                end = before + index + 1
                return Matched(self._send(whole, end if self._includes_stop else end - len(stop)), stop)
        self._state = state
        return Matched(self._send(whole, len(whole) - patterns.held_at[state]), None)

    def flush(self) -> str:
        """What was held back, now that nothing follows."""
        return self._send(self._held, len(self._held))

    def _send(self, whole: str, length: int) -> str:
        """What is sent of the first characters; the others are held."""
        self._held = whole[length:]
        if not self._hidden:
            return whole[:length]
        hidden, self._hidden = self._hidden, self._hidden[length:]
        if not any(self._hidden):
            self._hidden = []
        return "".join(character for character, away in zip(whole[:length], hidden, strict=False) if not away)
