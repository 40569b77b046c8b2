"""The forms in which models write tool calls: what sets a call apart from text, and how it is read.

Where nothing but its form does, a call stands at the beginning of the answer and names a tool that there is: any other JSON is content.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from gateway.tools.call_grammars import (
    Demand,
    Rules,
    deepseek_rules,
    harmony_rules,
    hermes_rules,
    json_rules,
    llama_rules,
    mistral_rules,
    pythonic_rules,
)
from gateway.tools.call_objects import MAX_NAME_CHARS, read_arguments, read_call, read_calls, read_list
from gateway.tools.characters import END, Characters, NotACall, Reading
from gateway.tools.findings import Findings
from gateway.tools.harmony import HARMONY_MARKERS, read_harmony
from gateway.tools.pythonic import read_python_calls

Reader = Callable[[Characters, Findings, Collection[str]], Reading[None]]


class CallFormat(NamedTuple):
    """One form."""

    # Finds the calls in an answer, given the names of the tools there are, and reads it to its end.
    read: Reader
    # What an answer must be of which calls are asked.
    rules: Callable[[Demand], Rules]
    # Tokens by which the form is known, which may be special ones; by their indices the rules refer to them.
    markers: tuple[str, ...] = ()


_HERMES, _HERMES_END = "<tool_call>", "</tool_call>"
_PYTHON_TAG = "<|python_tag|>"
_MISTRAL, _MISTRAL_ARGUMENTS, _MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
# As the model's author spells them.
_CALLS, _CALL, _SEPARATOR = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"  # noqa: RUF001
_CALL_END, _CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001
# Of an id, which is left out.
_MAX_ID_CHARS = 256


def _read_hermes(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    while marker := (yield from chars.until((_HERMES,), out.say)):
        if (yield from _attempt(chars, out, read_call(chars, out, None), after=marker)):
            yield from _skip_end(chars, out, _HERMES_END, beside="}]")


def _read_llama(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    yield from _attempt(chars, out, read_calls(chars, out, known))
    while marker := (yield from chars.until((_PYTHON_TAG,), out.say)):
        yield from _attempt(chars, out, read_calls(chars, out, None), after=marker)


def _read_json(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    yield from _attempt(chars, out, _read_objects_or_list(chars, out, known))
    yield from chars.rest(out.say)


def _read_pythonic(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    yield from _attempt(chars, out, read_python_calls(chars, out, known))
    yield from chars.rest(out.say)


def _read_mistral(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    while marker := (yield from chars.until((_MISTRAL,), out.say)):
        yield from _attempt(chars, out, _read_mistral_calls(chars, out), after=marker)


def _read_deepseek(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    while marker := (yield from chars.until((_CALLS, _CALL), out.say)):
        yield from _attempt(chars, out, _read_marked_deepseek_call(chars, out, marker), after=marker)


def _attempt(chars: Characters, out: Findings, reading: Reading[None], *, after: str = "") -> Reading[bool]:
    """Reads calls, and whether all of it was some. What turns out to be none is content, with the marker that stood before it."""
    calls_before = out.num_calls
    chars.record()
    try:
        yield from reading
    except NotACall:
        if out.num_calls == calls_before:
            out.say(after)
        out.say(chars.give_up())
        return False
    return True


def _skip_end(chars: Characters, out: Findings, marker: str, *, beside: str) -> Reading[None]:
    """Leaves the marker behind a call out, and what models write too much before it."""
    skipped = ""
    while (character := (yield from chars.next())) and (character.isspace() or character in beside):
        skipped += character
    chars.put_back(character)
    if not (yield from chars.literal(marker)):
        out.say(skipped)


def _read_objects_or_list(chars: Characters, out: Findings, known: Collection[str]) -> Reading[None]:
    character = yield from chars.after_space()
    chars.put_back(character)
    yield from (read_list if character == "[" else read_calls)(chars, out, known)


def _read_mistral_calls(chars: Characters, out: Findings) -> Reading[None]:
    character = yield from chars.after_space()
    chars.put_back(character)
    if character == "[":
        yield from read_list(chars, out, None)
        return
    name = yield from _text_before(chars, "[{", MAX_NAME_CHARS)
    if (yield from chars.literal(_MISTRAL_ID)):
        yield from _text_before(chars, "[", _MAX_ID_CHARS)
    if not (yield from chars.literal(_MISTRAL_ARGUMENTS)):
        character = yield from chars.next()
        if character != "{":
            raise NotACall
        chars.put_back(character)
    yield from _begin(chars, out, name)
    yield from read_arguments(chars, out.argue)


def _read_marked_deepseek_call(chars: Characters, out: Findings, marker: str) -> Reading[None]:
    if marker == _CALLS and not (yield from _literal_after_space(chars, _CALL)):
        raise NotACall
    yield from _read_deepseek_call(chars, out)
    if not (yield from _literal_after_space(chars, _CALL_END)):
        raise NotACall
    yield from _literal_after_space(chars, _CALLS_END)


def _read_deepseek_call(chars: Characters, out: Findings) -> Reading[None]:
    """`NAME sep {...}`, or as V3 and R1 write it `function sep NAME`, a line's end, and the arguments in a fence."""
    name = yield from _text_before(chars, "<", MAX_NAME_CHARS)
    if not (yield from chars.literal(_SEPARATOR)):
        raise NotACall
    character = yield from chars.after_space()
    chars.put_back(character)
    is_fenced = name == "function" and character != "{"
    if is_fenced:
        name = yield from _text_before(chars, "\n", MAX_NAME_CHARS)
        if not (yield from _literal_after_space(chars, "```json")):
            raise NotACall
    yield from _begin(chars, out, name)
    yield from read_arguments(chars, out.argue)
    if is_fenced:
        yield from _literal_after_space(chars, "```")


def _begin(chars: Characters, out: Findings, name: str) -> Reading[None]:
    """The call begins once there is a first character of its arguments."""
    character = yield from chars.after_space()
    if not name or character == END:
        raise NotACall
    chars.put_back(character)
    chars.commit()
    out.begin_call(name)


def _text_before(chars: Characters, ends: str, most: int) -> Reading[str]:
    """The text before the first of these characters, which is left, without space around it; of so many characters at most."""
    text = ""
    while (character := (yield from chars.next())) != END and character not in ends:
        text += character
        if len(text) > most:
            raise NotACall
    chars.put_back(character)
    return text.strip()


def _literal_after_space(chars: Characters, text: str) -> Reading[bool]:
    """Whether the text comes next but for space, which is left out with it. If not, nothing was read."""
    space = ""
    while (character := (yield from chars.next())).isspace():
        space += character
    chars.put_back(character)
    if (yield from chars.literal(text)):
        return True
    chars.put_back(space)
    return False


FORMATS: Mapping[str, CallFormat] = {
    "hermes": CallFormat(_read_hermes, hermes_rules, (_HERMES, _HERMES_END)),
    "llama3": CallFormat(_read_llama, llama_rules, (_PYTHON_TAG,)),
    "pythonic": CallFormat(_read_pythonic, pythonic_rules),
    "mistral": CallFormat(_read_mistral, mistral_rules, (_MISTRAL, _MISTRAL_ARGUMENTS, _MISTRAL_ID)),
    "deepseek": CallFormat(_read_deepseek, deepseek_rules, (_CALLS, _CALL, _SEPARATOR, _CALL_END, _CALLS_END)),
    "json": CallFormat(_read_json, json_rules),
    "harmony": CallFormat(read_harmony, harmony_rules, HARMONY_MARKERS),
}
