"""Reads answers in the form of gpt-oss, whose parts - analysis, commentary, calls, the final text - are messages of their own.

`<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"a": 1}<|call|>`
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from gateway.tools.characters import END, Characters, Reading
from gateway.tools.findings import Findings

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
HARMONY_MARKERS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)
_RECIPIENT = re.compile(r"to=functions\.([^\s<]{1,128})")
_MAX_HEADER_CHARS = 1024


def read_harmony(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    """Reads an answer to its end. It begins within a header, for the prompt has begun its first message.

    Args:
        chars: at the beginning.
        out: what is found.
        known: names of the tools there are; none = what is meant for one is content.
    """
    while True:
        header, is_header = yield from _read_header(chars)
        if is_header:
            yield from _read_part(chars, out, header, known)
        else:
            # Some answers have no form at all.
            out.say(header)
            yield from chars.until((*_ENDS, _START), out.say)
        # Between two messages there is nothing but the next one's beginning.
        character = yield from chars.next()
        if character == END:
            return
        chars.put_back(character)
        yield from chars.literal(_START)


def _read_header(chars: Characters) -> Reading[tuple[str, bool]]:
    """What stands before a message's text, and whether that is a header at all."""
    header = ""
    while not header.endswith(_MESSAGE):
        character = yield from chars.next()
        if character == END or len(header) > _MAX_HEADER_CHARS or not _may_be_header(header):
            chars.put_back(character)
            return header, False
        header += character
    return header.removesuffix(_MESSAGE), True


def _may_be_header(header: str) -> bool:
    return not header or any(header.startswith(start) or start.startswith(header) for start in (_CHANNEL, "assistant", " to="))


def _read_part(chars: Characters, out: Findings, header: str, known: Collection[str]) -> Reading[None]:
    recipient = _RECIPIENT.search(header)
    say: Callable[[str], None] = out.say
    if recipient is not None and known:
        out.begin_call(recipient[1])
        say = out.argue
    else:
        out.begin_part()
        if header.partition(_CHANNEL)[2].startswith("analysis"):
            say = out.think
    yield from chars.until((*_ENDS, _START), say)
    if say == out.think:
        out.end_reasoning()
