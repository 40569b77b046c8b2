"""What has been found in the text of an answer: the deltas that a client gets of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias


class CallDelta(NamedTuple):
    """More of a tool call."""

    # Of the call in the answer, from 0.
    number: int
    # With a call's first delta, and only there.
    id: str | None
    name: str | None
    # A piece of the arguments' JSON; may be empty.
    arguments: str


class Spoken(NamedTuple):
    """More of what is said or thought."""

    text: str
    is_thought: bool = False


# More of one of the parts of an answer, which follow each other.
Part: TypeAlias = Spoken | CallDelta


class Said(NamedTuple):
    """What came to light, sorted, and in the order in which the model wrote it."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Said:
        """Sorts parts."""
        spoken = [part for part in parts if isinstance(part, Spoken)]
        content = "".join([part.text for part in spoken if not part.is_thought])
        reasoning = "".join([part.text for part in spoken if part.is_thought])
        return cls(content, reasoning, tuple([part for part in parts if isinstance(part, CallDelta)]), tuple(parts))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.content or self.reasoning or self.calls)


class Findings:
    """Gathers what is found until it is taken.

    Space around reasoning and calls belongs to the form in which the model writes them and is left out. An answer with neither is content to the
    last character.

    Args:
        call_id: makes the id of a call from its index.
        parallel: whether there may be more than one call; if not, all that follows the first is left out.
        only_calls: whether there is nothing to be said: what is left of a call that was cut off before it was one is left out.
    """

    def __init__(self, call_id: Callable[[int], str], *, parallel: bool, only_calls: bool = False) -> None:
        self.num_calls = 0
        self._call_id = call_id
        self._parallel = parallel
        self._only_calls = only_calls
        self._is_over = False
        self._parts: list[Part] = []
        self._arguments: list[str] = []
        # Space that is left out unless more of the same follows.
        self._space = ""
        self._has_content = False
        self._has_reasoning = False

    def say(self, text: str) -> None:
        """Takes content in."""
        if self._only_calls:
            return
        body = text.rstrip()
        if self._is_over or not body:
            self._space += text
            return
        self._add(Spoken(self._space + body if self._has_content or not (self.num_calls or self._has_reasoning) else body.lstrip()))
        self._has_content = True
        self._space = text[len(body) :]

    def think(self, text: str) -> None:
        """Takes reasoning in."""
        body = text.rstrip()
        if not body:
            self._space += text
            return
        self._add(Spoken(self._space + body if self._has_reasoning else body.lstrip(), is_thought=True))
        self._has_reasoning = True
        self._space = text[len(body) :]

    def end_reasoning(self) -> None:
        """What follows is no reasoning."""
        self._has_reasoning = True
        self._space = ""

    def begin_part(self) -> None:
        """Another part of the answer begins: an empty line stands between it and one of its kind."""
        self._space = "\n\n" if self._has_content or self._has_reasoning else ""

    def begin_call(self, name: str) -> None:
        """A call begins."""
        self._end_arguments()
        self._is_over = self.num_calls > 0 and not self._parallel
        if not self._is_over:
            self._parts.append(CallDelta(self.num_calls, self._call_id(self.num_calls), name, ""))
            self.num_calls += 1

    def argue(self, text: str) -> None:
        """Takes more of the call's arguments in."""
        if not self._is_over:
            self._arguments.append(text)

    def end(self) -> None:
        """The text has ended."""
        if not (self.num_calls or self._has_reasoning) or (self._has_content and not self.num_calls):
            self._add(Spoken(self._space))
        self._space = ""

    def take(self) -> Said:
        """All since the last call."""
        self._end_arguments()
        parts, self._parts = self._parts, []
        return Said.of(_merged(parts))

    def _add(self, spoken: Spoken) -> None:
        self._end_arguments()
        if spoken.text:
            self._parts.append(spoken)

    def _end_arguments(self) -> None:
        """What came of arguments is the latest call's."""
        if not self._arguments:
            return
        arguments = "".join(self._arguments)
        self._arguments = []
        latest = self._parts[-1] if self._parts else None
        if isinstance(latest, CallDelta):
            self._parts[-1] = latest._replace(arguments=latest.arguments + arguments)
        else:
            self._parts.append(CallDelta(self.num_calls - 1, None, None, arguments))


def _merged(parts: Sequence[Part]) -> list[Part]:
    """With one part for what is said in one go, however it came."""
    merged: list[Part] = []
    for kind, run in groupby(parts, key=lambda part: part.is_thought if isinstance(part, Spoken) else None):
        pieces = list(run)
        merged += pieces if kind is None else [Spoken("".join([part.text for part in pieces if isinstance(part, Spoken)]), kind)]
    return merged
