"""The characters of a text, read one by one by generators that wait where it has not come yet.

A reader sees a text character by character whatever the pieces it comes in, so what it makes of the text cannot depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
# Waits for characters and returns something.
Reading: TypeAlias = Generator[None, str, T]

# In place of a character: the text has ended.
END = ""


class NotACall(Exception):
    """What was read is no tool call, or is none any more."""


class Characters:
    """What a generator reads from; `AnswerParser` sends it the characters."""

    def __init__(self) -> None:
        # Set while the next characters are only passed on: who takes them, and the character at which that ends, or empty for none.
        self.passing: tuple[Callable[[str], None], str] | None = None
        self._back: list[str] = []
        self._record: list[str] | None = None
        self._last = END
        self._has_ended = False

    def next(self) -> Reading[str]:
        """The next character, or END, again and again."""
        if self._back:
            character = self._back.pop()
        elif self._has_ended:
            character = END
        else:
            character = yield
            self._has_ended = character == END
        self._last = character
        if self._record is not None and character:
            self._record.append(character)
        return character

    def put_back(self, text: str) -> None:
        """The text, which was just read, is read again."""
        self._back.extend(reversed(text))
        self._last = END
        if self._record is not None and text:
            del self._record[-len(text) :]

    def record(self) -> None:
        """Begins to keep what is read, for it may turn out to be no call."""
        self._record = []

    def commit(self) -> None:
        """What was read is a call."""
        self._record = None

    def give_up(self) -> str:
        """What was read since `record`, unless it turned out to be a call; it is content. The last character is read again: something may begin
        with it."""
        read, self._record = self._record or [], None
        self._back.extend(self._last)
        return "".join(read[:-1] if self._last else read)

    def after_space(self) -> Reading[str]:
        """The next character that is no space, or END."""
        while (character := (yield from self.next())).isspace():
            pass
        return character

    def literal(self, text: str) -> Reading[bool]:
        """Whether the text comes next. If not, nothing was read."""
        for index, wanted in enumerate(text):
            character = yield from self.next()
            if character != wanted:
                self.put_back(text[:index] + character)
                return False
        return True

    def until(self, markers: Collection[str], say: Callable[[str], None]) -> Reading[str]:
        """Passes text on up to one of the markers, which is read and returned; END if none comes.

        Args:
            markers: all begin with the same character, which is nowhere else in them; none begins with another one.
            say: takes the text.
        """
        first = next(iter(markers))[0]
        while True:
            self.passing = (say, first)
            character = yield from self.next()
            self.passing = None
            if character == END:
                return END
            got = character
            while got not in markers and any(marker.startswith(got) for marker in markers):
                got += yield from self.next()
                if self._has_ended and not self._back:
                    break
            if got in markers:
                return got
            if len(got) > 1 and got[-1] == first:
                self.put_back(first)
                got = got[:-1]
            say(got)

    def rest(self, say: Callable[[str], None]) -> Reading[None]:
        """Passes all text on."""
        self.passing = (say, "")
        while (character := (yield from self.next())) != END:
            say(character)
