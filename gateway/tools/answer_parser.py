"""Takes one answer apart: reasoning first, then content and tool calls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from gateway.tools.call_formats import CallFormat
from gateway.tools.characters import END, Characters, Reading
from gateway.tools.findings import Findings, Said

_ID_DIGITS = 24


class ReasoningFormat(NamedTuple):
    """What stands before and behind a model's reasoning."""

    begin: str
    end: str

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens by which it is known, which may be special ones."""
        return (self.begin, self.end)


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """How the answers to one request are written.

    Attributes:
        request_id: of which ids of calls are made.
        calls: None = calls are not looked for.
        tools: names of the tools there are.
        parallel: whether there may be more than one call.
        reasoning: None = it is not looked for.
        begins_in_reasoning: whether the prompt has begun it.
        must_call: whether it is held to calls alone.
        is_named: whether the client has chosen what is called.
    """

    request_id: str
    calls: CallFormat | None = None
    tools: frozenset[str] = frozenset()
    parallel: bool = True
    reasoning: ReasoningFormat | None = None
    begins_in_reasoning: bool = False
    must_call: bool = False
    is_named: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Tokens by which calls and reasoning are known, which may be special ones."""
        return (*(self.calls.markers if self.calls is not None else ()), *(self.reasoning.markers if self.reasoning is not None else ()))

    def parser(self, choice: int) -> AnswerParser:
        """A parser of one answer."""
        return AnswerParser(self, choice)


class AnswerParser:
    """Takes the text of an answer as it comes. What is made of it does not depend on the pieces.

    Args:
        form: how it is written.
        choice: which of the request's answers it is.
    """

    def __init__(self, form: AnswerForm, choice: int) -> None:
        self._chars = Characters()
        self._found = Findings(lambda index: _call_id(form.request_id, choice, index), parallel=form.parallel, only_calls=form.must_call)
        self._is_named = form.is_named
        self._reader = _read_answer(self._chars, self._found, form)
        next(self._reader)

    @property
    def has_calls(self) -> bool:
        """Whether a call was found."""
        return self._found.num_calls > 0

    @property
    def asks(self) -> bool:
        """Whether a call was found that its client has not chosen itself."""
        return self.has_calls and not self._is_named

    def feed(self, text: str, *, is_last: bool = False) -> Said:
        """What comes to light with more of the text. After the last of it nothing may be fed."""
        start = 0
        while start < len(text):
            if self._chars.passing is None:
                self._reader.send(text[start])
                start += 1
                continue
            say, until = self._chars.passing
            end = text.find(until, start) if until else len(text)
            if end == start:
                self._reader.send(text[start])
                start += 1
            else:
                say(text[start:] if end < 0 else text[start:end])
                start = len(text) if end < 0 else end
        if is_last:
            self._finish()
        return self._found.take()

    def _finish(self) -> None:
        try:
            self._reader.send(END)
        except StopIteration:
            self._found.end()
            return
        raise AssertionError("a reader reads to the end")


def _read_answer(chars: Characters, out: Findings, form: AnswerForm) -> Reading[None]:
    if form.reasoning is not None:
        yield from _read_reasoning(chars, out, form.reasoning, begun=form.begins_in_reasoning)
    if form.calls is not None:
        yield from form.calls.read(chars, out, form.tools)
    else:
        yield from chars.rest(out.say)


def _read_reasoning(chars: Characters, out: Findings, form: ReasoningFormat, *, begun: bool) -> Reading[None]:
    space = ""
    while (character := (yield from chars.next())).isspace():
        space += character
    chars.put_back(character)
    # Some models begin it again though the prompt has done so.
    if not (yield from chars.literal(form.begin)) and not begun:
        chars.put_back(space)
        return
    yield from chars.until((form.end,), out.think)
    out.end_reasoning()


def _call_id(request_id: str, choice: int, index: int) -> str:
    return f"call_{hashlib.sha256(f'{request_id}/{choice}/{index}'.encode()).hexdigest()[:_ID_DIGITS]}"
