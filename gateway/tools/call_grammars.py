"""What an answer must be that calls tools: grammars, in Lark's syntax, of the forms in which models write calls. What they allow, the readers of
`call_formats` take apart again.

`marker_N`, `until_N` and `WITHOUT_N` are the contract's, of the format's markers; `@text` is what a client wants in place of calls.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from gateway.tools.argument_grammars import OfferedTool, Schema, argument_schema, call_in_python, call_schema, in_json, quoted

# What stands between reasoning and the rest, at most.
_SPACE = r"SPACE: /[ \n]{1,2}/"
# As its models write them.
_MISTRAL_ID, _MISTRAL_ENTRY = "/[a-zA-Z0-9]{9}/", '/, "id": "[a-zA-Z0-9]{9}"/'
# An answer that does not begin as a call would.
_NO_OBJECT = r"TEXT: /\s*([^\s{](?s:.)*)?/"
_NO_LIST = r"TEXT: /\s*([^\s\[](?s:.)*)?/"
_NO_OBJECT_OR_LIST = r"TEXT: /\s*([^\s{\[](?s:.)*)?/"


class Demand(NamedTuple):
    """What is asked of an answer's calls."""

    # Those that may be called; none = nothing is.
    tools: tuple[OfferedTool, ...] = ()
    # Whether there must be a call.
    must_call: bool = False
    # Whether there may be more than one.
    parallel: bool = True
    # Whether an answer without a call is a text of the client's form.
    has_text: bool = False

    def schema(self, tool: OfferedTool) -> Schema | None:
        """What the arguments of a call must be; None = any object."""
        return argument_schema(tool) if self.must_call or tool.is_strict else None

    def several(self, rule: str, between: str) -> str:
        """One of them, or as many as there may be calls."""
        return f"{rule} ({between} {rule})*" if self.parallel else rule

    @property
    def repeat(self) -> str:
        """Behind what may be there as often as there may be calls."""
        return "*" if self.parallel else "?"


class Rules(NamedTuple):
    """A format's part of a grammar."""

    # An answer that calls; empty = there is nothing to be called.
    calls: str
    # An answer that may call, or say what it likes.
    free: str
    # What they refer to.
    more: tuple[str, ...] = ()
    # What stands before a text of the client's form.
    before_text: str = ""


def answer_rule(rules: Rules, demand: Demand) -> str:
    """The rule `answer`, of all behind the reasoning, with what it refers to."""
    body = rules.free
    if demand.must_call:
        body = rules.calls
    elif demand.has_text:
        body = " | ".join(one for one in (rules.calls, f"{rules.before_text} @text".lstrip()) if one)
    return "\n".join((f"answer: {body}", *rules.more))


def start_rule(*, begin: int | None = None, end: int | None = None) -> str:
    """The rule `start`: reasoning, and then the answer.

    Args:
        begin: index of the marker before reasoning, which an answer may lack; None = the prompt has begun it.
        end: index of the one behind it; None = there is no reasoning.
    """
    if end is None:
        return "start: answer"
    thoughts = f"until_{end} SPACE?"
    return f"start: {thoughts if begin is None else f'(marker_{begin} {thoughts})?'} answer\n{_SPACE}"


def hermes_rules(demand: Demand) -> Rules:
    """`<tool_call>`, a line with an object, `</tool_call>`."""
    return Rules(
        calls=demand.several("marked", r'"\n"'),
        free=f"(until_0 body){demand.repeat} WITHOUT_0",
        more=("marked: marker_0 body", r'body: "\n" call "\n" marker_1', *_objects(demand, "arguments")),
    )


def llama_rules(demand: Demand) -> Rules:
    """Objects, behind `<|python_tag|>` or not. What does not begin with one is text."""
    calls = f"marker_0? {demand.several('call', quoted('; '))}"
    return Rules(
        calls, f"{calls} | PLAIN", ("PLAIN: TEXT & WITHOUT_0", _NO_OBJECT, *_objects(demand, "parameters", as_json=demand.has_text))
    )


def json_rules(demand: Demand) -> Rules:
    """An object, or a list of them. What begins with neither is text."""
    calls = f"call | {_list(demand)}"
    return Rules(calls, f"{calls} | TEXT", (_NO_OBJECT_OR_LIST, *_objects(demand, "arguments", as_json=demand.has_text)))


def pythonic_rules(demand: Demand) -> Rules:
    """A list of calls as Python writes them. What does not begin with a list is text.

    Raises:
        CannotHold: a tool or its parameters cannot be written so.
    """
    calls = _list(demand)
    each = [rule for number, tool in enumerate(demand.tools) for rule in call_in_python(number, tool, demand.schema(tool))]
    return Rules(calls, f"{calls} | TEXT", (_NO_LIST, _any_of(demand, "call"), *each))


def mistral_rules(demand: Demand) -> Rules:
    """`[TOOL_CALLS]`, and a list of objects or, as later models write it, a name and its arguments behind `[ARGS]`."""
    named = [
        f"named_{number}: {quoted(tool.name)} (marker_2 {_MISTRAL_ID})? marker_1 args_{number}" for number, tool in enumerate(demand.tools)
    ]
    return Rules(
        calls=f"marker_0 (listed | {demand.several('named', 'marker_0')})",
        free=f"(until_0 (listed | named)){demand.repeat} WITHOUT_0",
        more=(f'listed: " "? {_list(demand)}', _any_of(demand, "named"), *named, *_objects(demand, "arguments", f"{_MISTRAL_ENTRY}?")),
    )


def deepseek_rules(demand: Demand) -> Rules:
    """Calls between markers: `NAME sep {...}`, or `function sep NAME` and the arguments in a fence."""
    calls = []
    for number, tool in enumerate(demand.tools):
        opening = quoted(f"{tool.name}\n```json\n")
        calls.append(f'call_{number}: {quoted(tool.name)} marker_2 args_{number} | "function" marker_2 {opening} args_{number} "\\n```"')
    return Rules(
        calls="marker_0 block",
        free="(until_0 block)? REST",
        more=(
            "REST: WITHOUT_0 & WITHOUT_1",
            f"block: {demand.several('one', quoted(chr(10)) + '?')} marker_4",
            "one: marker_1 call marker_3",
            _any_of(demand, "call"),
            *calls,
            *_arguments(demand),
        ),
    )


def harmony_rules(demand: Demand) -> Rules:
    """Messages of thoughts, and one that calls or says something: a call of gpt-oss ends its answer."""
    calls = []
    for number, tool in enumerate(demand.tools):
        recipient = f"to=functions.{tool.name}"
        header = f'marker_1 {quoted(f"commentary {recipient}")} | {quoted(f" {recipient}")} marker_1 "commentary"'
        calls.append(f"call_{number}: ({header}) kind? marker_3 args_{number}")
    may_call = "call | " if demand.tools else ""
    # What is said beside a call is content, which an answer of the client's form has no room for.
    channels = '"analysis"' if demand.must_call or demand.has_text else '("analysis" | "commentary")'
    return Rules(
        calls="thought* call" if demand.tools else "",
        free=f"thought* ({may_call}says WITHOUT_4)",
        more=(
            f'thought: marker_1 {channels} marker_3 until_4 marker_0 "assistant"',
            'says: marker_1 "final" kind? marker_3',
            'kind: " "? marker_2 "json" | " json"',
            *((_any_of(demand, "call"), *calls, *_arguments(demand)) if demand.tools else ()),
        ),
        before_text="thought* says",
    )


def _list(demand: Demand) -> str:
    return f'"[" {demand.several("call", quoted(", "))} "]"'


def _any_of(demand: Demand, rule: str) -> str:
    return f"{rule}: {' | '.join(f'{rule}_{number}' for number in range(len(demand.tools)))}"


def _objects(demand: Demand, key: str, more_entries: str = "", *, as_json: bool = False) -> list[str]:
    """Calls as objects, with the arguments under a key.

    Args:
        demand: what is asked.
        key: of the arguments.
        more_entries: what an object may have behind them.
        as_json: whether it is all one schema: where another text may begin with a brace too, the two are told apart key by key.
    """
    if as_json:
        objects = [
            f"call_{number}: {in_json(call_schema(tool.name, key, demand.schema(tool)))}" for number, tool in enumerate(demand.tools)
        ]
        return [_any_of(demand, "call"), *objects]
    calls = []
    for number, tool in enumerate(demand.tools):
        opening = quoted(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        calls.append(f'call_{number}: {opening} args_{number} {more_entries} "}}"')
    return [_any_of(demand, "call"), *calls, *_arguments(demand)]


def _arguments(demand: Demand) -> list[str]:
    return [f"args_{number}: {in_json(demand.schema(tool))}" for number, tool in enumerate(demand.tools)]
