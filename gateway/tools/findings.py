"""What has been found in the text of an answer: the deltas that a client gets of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class CallDelta(NamedTuple):
    """More of a tool call."""

    # Of the call in the answer, from 0.
    number: int
    # With a call's first delta, and only there.
    id: str | None
    name: str | None
    # A piece of the arguments' JSON; may be empty.
    arguments: str


class Said(NamedTuple):
    """What came to light."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

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
    """

    def __init__(self, call_id: Callable[[int], str], *, parallel: bool) -> None:
        self.num_calls = 0
        self._call_id = call_id
        self._parallel = parallel
        self._is_over = False
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[CallDelta] = []
        self._arguments: list[str] = []
        # Space that is left out unless more of the same follows.
        self._space = ""
        self._has_content = False
        self._has_reasoning = False

    def say(self, text: str) -> None:
        """Takes content in."""
        body = text.rstrip()
        if self._is_over or not body:
            self._space += text
            return
        if self._has_content or not (self.num_calls or self._has_reasoning):
            self._content.append(self._space + body)
        else:
            self._content.append(body.lstrip())
        self._has_content = True
        self._space = text[len(body) :]

    def think(self, text: str) -> None:
        """Takes reasoning in."""
        body = text.rstrip()
        if not body:
            self._space += text
            return
        self._reasoning.append(self._space + body if self._has_reasoning else body.lstrip())
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
            self._calls.append(CallDelta(self.num_calls, self._call_id(self.num_calls), name, ""))
            self.num_calls += 1

    def argue(self, text: str) -> None:
        """Takes more of the call's arguments in."""
        if not self._is_over:
            self._arguments.append(text)

    def end(self) -> None:
        """The text has ended."""
        if not (self.num_calls or self._has_reasoning) or (self._has_content and not self.num_calls):
            self._content.append(self._space)
        self._space = ""

    def take(self) -> Said:
        """All since the last call."""
        self._end_arguments()
        said = Said("".join(self._content), "".join(self._reasoning), tuple(self._calls))
        self._content, self._reasoning, self._calls = [], [], []
        return said

    def _end_arguments(self) -> None:
        """What came of arguments is the latest call's."""
        if not self._arguments:
            return
        arguments = "".join(self._arguments)
        self._arguments = []
        if self._calls:
            latest = self._calls[-1]
            self._calls[-1] = latest._replace(arguments=latest.arguments + arguments)
        else:
            self._calls.append(CallDelta(self.num_calls - 1, None, None, arguments))
