"""Answers with tool calls, written as models of each kind write them, and what a client is to get of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from hypothesis import strategies as st

from gateway.tools.answer_parser import AnswerForm, AnswerParser
from gateway.tools.call_formats import FORMATS
from gateway.tools.findings import CallDelta, Said

TOOLS = frozenset({"get_weather", "search", "math.add"})


class WrittenCall(NamedTuple):
    """A call and its arguments as the model writes them."""

    name: str
    arguments: str


class Heard(NamedTuple):
    """What a client has after the last delta."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]


class Ear:
    """Puts deltas together as a client does, and holds them against what a client may rely on."""

    def __init__(self) -> None:
        self.content = ""
        self.reasoning = ""
        self.names: list[str] = []
        self.ids: list[str] = []
        self.arguments: list[str] = []

    def hear(self, said: Said) -> None:
        """Takes deltas."""
        self.content += said.content
        self.reasoning += said.reasoning
        for delta in said.calls:
            self._hear_call(delta)

    def _hear_call(self, delta: CallDelta) -> None:
        if delta.number == len(self.names):
            assert delta.id is not None and delta.name is not None, "a call begins with its id and name"
            self.names.append(delta.name)
            self.ids.append(delta.id)
            self.arguments.append("")
        assert delta.number == len(self.names) - 1, "calls come one after the other"
        if self.arguments[-1]:
            assert delta.id is None and delta.name is None, "id and name come once"
        self.arguments[-1] += delta.arguments

    @property
    def heard(self) -> Heard:
        """All of it."""
        assert len(set(self.ids)) == len(self.ids), "each call has an id of its own"
        return Heard(self.content, self.reasoning, list(zip(self.names, self.arguments, strict=True)))


def form_of(name: str | None, **changes: Any) -> AnswerForm:
    """The form of answers whose calls are written in one of the formats."""
    calls = None if name is None else FORMATS[name]
    return AnswerForm(**{"request_id": "r-1", "calls": calls, "tools": TOOLS, **changes})


def heard_in(form: AnswerForm, pieces: Sequence[str]) -> Heard:
    """What a client gets of an answer that comes in pieces."""
    parser: AnswerParser = form.parser(0)
    ear = Ear()
    for piece in pieces:
        ear.hear(parser.feed(piece))
    ear.hear(parser.feed("", is_last=True))
    assert parser.has_calls is bool(ear.names)
    return ear.heard


def cut(text: str, places: Sequence[int]) -> list[str]:
    """The text in pieces; empty ones among them."""
    ends = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def _objects(calls: Sequence[WrittenCall], key: str) -> list[str]:
    return [f'{{"name": {json.dumps(call.name)}, "{key}": {call.arguments}}}' for call in calls]


def _python(value: Any) -> str:
    """As Python writes it, which is what a model of pythonic calls does."""
    return repr(value)


def _pythonic(calls: Sequence[WrittenCall]) -> str:
    written = []
    for call in calls:
        entries = ", ".join(f"{name}={_python(value)}" for name, value in json.loads(call.arguments).items())
        written.append(f"{call.name}({entries})")
    return f"[{', '.join(written)}]"


_V3 = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{0.name}\n```json\n{0.arguments}\n```<｜tool▁call▁end｜>"  # noqa: RUF001
_V31 = "<｜tool▁call▁begin｜>{0.name}<｜tool▁sep｜>{0.arguments}<｜tool▁call▁end｜>"  # noqa: RUF001


def _deepseek(calls: Sequence[WrittenCall], form: str, between: str) -> str:
    return f"<｜tool▁calls▁begin｜>{between.join(form.format(call) for call in calls)}<｜tool▁calls▁end｜>"  # noqa: RUF001


# By parser, the ways in which models write calls for it.
WRITERS: Mapping[str, Sequence[Callable[[Sequence[WrittenCall]], str]]] = {
    "hermes": [
        lambda calls: "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in _objects(calls, "arguments")),
        lambda calls: "".join(f"<tool_call>{one}</tool_call>" for one in _objects(calls, "arguments")),
        # Some forget where a call ends.
        lambda calls: "\n".join(f"<tool_call>\n{one}\n" for one in _objects(calls, "arguments")),
    ],
    "llama3": [
        lambda calls: "; ".join(_objects(calls, "parameters")),
        lambda calls: "<|python_tag|>" + ";".join(_objects(calls, "parameters")),
        lambda calls: "\n".join(_objects(calls, "arguments")),
    ],
    "pythonic": [_pythonic],
    "mistral": [
        lambda calls: f"[TOOL_CALLS][{', '.join(_objects(calls, 'arguments'))}]",
        lambda calls: f"[TOOL_CALLS] [{','.join(_objects(calls, 'arguments'))}]",
        lambda calls: "".join(f"[TOOL_CALLS]{call.name}[ARGS]{call.arguments}" for call in calls),
        lambda calls: "".join(f"[TOOL_CALLS]{call.name}[CALL_ID]a1b2c3d4e[ARGS]{call.arguments}" for call in calls),
        lambda calls: "".join(f"[TOOL_CALLS]{call.name}{call.arguments}" for call in calls),
    ],
    "deepseek": [
        lambda calls: _deepseek(calls, _V3, "\n"),
        lambda calls: _deepseek(calls, _V31, ""),
    ],
    "harmony": [
        lambda calls: "<|start|>assistant".join(
            f" to=functions.{call.name}<|channel|>commentary <|constrain|>json<|message|>{call.arguments}<|call|>" for call in calls
        ),
        lambda calls: "<|start|>".join(
            f"{'assistant' if number else ''}<|channel|>commentary to=functions.{call.name} json<|message|>{call.arguments}<|end|>"
            for number, call in enumerate(calls)
        ),
    ],
    "json": [
        lambda calls: f"[{', '.join(_objects(calls, 'arguments'))}]",
        lambda calls: "\n".join(_objects(calls, "parameters")),
    ],
}
# Formats in which a call can stand behind text that nothing marks.
MARKED = ("hermes", "llama3", "mistral", "deepseek")

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"', "\\", '\\"', "</tool_call>", "<tool_call>", "]}", "[TOOL_CALLS]", "a\nb", "é漢😀", "{", "```", "<｜tool▁call▁end｜>", "'"]  # noqa: RUF001
)
_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def _written(arguments: Any, ascii_only: bool, indent: int | None) -> str:
    return json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)


calls = st.lists(
    st.builds(
        WrittenCall,
        st.sampled_from(sorted(TOOLS)),
        st.builds(_written, st.dictionaries(_names, _values, max_size=3), st.booleans(), st.none() | st.just(2)),
    ),
    min_size=1,
    max_size=3,
)
places = st.lists(st.integers(0, 10_000), max_size=40)
