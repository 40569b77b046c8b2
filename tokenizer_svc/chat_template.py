"""Renders chats through the model's own Jinja template, in a sandbox and within limits."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenizer_svc.special_tokens import MARKS
from tokenizer_svc.tools import Tool, ToolCall
from triserve.rpc.errors import InvalidRequest

logger = logging.getLogger(__name__)

TemplateValue = bool | int | str
USUAL_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
# What a template finds without being given it by a caller; a caller's argument of such a name would change its meaning.
RESERVED_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now", *DEFAULT_NAMESPACE}
)
_MESSAGE_CHARACTERS = 500
# A width in a time format can ask for gigabytes of padding.
_TIME_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}")
_WITHOUT_MARKS = dict.fromkeys(map(ord, MARKS))


class TemplateSourceError(Exception):
    """A template that is no Jinja; names the line."""


class _Refused(TemplateError):
    """The template called raise_exception."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        as_parts: whether the template gets the content as a list of one text part; `TemplateForms` finds out which it takes.
        tool_calls: what the turn calls.
        tool_call_id: the call whose result the turn is; None = it is none.
        reasoning: what the model thought before the turn; None = nothing.
        is_null: whether the template gets null as the content.
    """

    role: str
    content: str
    name: str | None = None
    as_parts: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    is_null: bool = False

    @property
    def num_characters(self) -> int:
        """Of all that was said."""
        said = sum(len(text or "") for text in (self.role, self.content, self.name, self.tool_call_id, self.reasoning))
        return said + sum(call.num_characters for call in self.tool_calls)

    def variables(self) -> dict[str, Any]:
        """The turn as templates know it: what it has not is left out."""
        content = [{"type": "text", "text": self.content}] if self.as_parts else self.content
        beside = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": self.reasoning}
        variables = {"role": self.role, "content": None if self.is_null else content}
        variables |= {name: value for name, value in beside.items() if value is not None}
        if self.tool_calls:
            variables["tool_calls"] = [call.variables() for call in self.tool_calls]
        return variables


@dataclass(frozen=True)
class RenderLimits:
    """Bounds of one rendering.

    Attributes:
        output_factor: the output may be this many times the input,
        output_slack: and this many characters more.
        timeout_s: checked whenever the template prints; one that computes without printing is not stopped.
    """

    output_factor: int = 8
    output_slack: int = 1024 * 1024
    timeout_s: float = 10.0


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja, from the model's folder and from nowhere else.
        special_tokens: variables such as bos_token.
        limits: bounds of one rendering.
        now: the local time, for templates that print the date.
        clock: seconds, for the time limit.

    Attributes:
        source: as given.
        known_roles: the usual ones, and every string in the template, for it may be a role it handles.
        cuts: strings that the template may look for and cut out of a text.
        reads: names of the variables it reads, given or not.

    Raises:
        TemplateSourceError: the source does not compile.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        limits: RenderLimits,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        environment = _environment(now)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateSourceError(f"line {error.lineno}: {error.message}") from error
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._limits = limits
        self._clock = clock
        strings = _strings_in(tree)
        self._strings = strings
        self.reads = frozenset(meta.find_undeclared_variables(tree))
        self.known_roles = USUAL_ROLES | strings
        calls: list[nodes.Call | nodes.Filter | nodes.Test] = [
            *tree.find_all(nodes.Call),
            *tree.find_all(nodes.Filter),
            *tree.find_all(nodes.Test),
        ]
        self.cuts = frozenset(text for call in calls for text in _strings_in(*call.args) if text)
        self._sought = self.cuts | _strings_in(*tree.find_all(nodes.Compare))
        self._literals = strings | {text.data for text in tree.find_all(nodes.TemplateData)}

    def names(self, role: str) -> bool:
        """Whether a string of the template is this role."""
        return role in self._strings

    def frames_with(self, token: str) -> bool:
        """Whether the template prints this token of its own accord and never looks for it in what users wrote."""
        return any(token in text for text in self._literals) and not any(token in text for text in self._sought)

    def render(
        self,
        messages: Sequence[Message],
        arguments: Mapping[str, TemplateValue],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool,
        is_probe: bool = False,
    ) -> str:
        """What the template prints for a chat.

        Args:
            messages: oldest first.
            arguments: further variables; their names were checked before.
            tools: read.
            add_generation_prompt: whether the assistant's header comes last.
            is_probe: whether it is only to be seen what the template does: then it is no news that it fails.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them, or goes over a limit.
        """
        variables: dict[str, Any] = {
            **self._special_tokens,
            **arguments,
            "messages": [message.variables() for message in messages],
            "tools": [tool.variables() for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            num_characters = sum(message.num_characters for message in messages)
            num_characters += sum(len(tool.parameters_json or "") + len(tool.description or "") for tool in tools)
            return self._print(variables, num_characters)
        except InvalidRequest:
            raise
        except _Refused as error:
            raise InvalidRequest(f"the model's chat template refuses the messages: {_for_people(error)}", field="messages") from None
        except Exception as error:  # noqa: BLE001 - a template is a program: it can fail in any way, and only this request with it
            level = logging.DEBUG if is_probe else logging.WARNING
            logger.log(level, "the chat template failed on %d messages: %s", len(messages), type(error).__name__)
            cause = _for_people(error) if isinstance(error, TemplateError) else type(error).__name__
            raise InvalidRequest(f"the model's chat template fails on the messages: {cause}", field="messages") from None

    def _print(self, variables: dict[str, Any], input_len: int) -> str:
        limit = self._limits.output_factor * input_len + self._limits.output_slack
        deadline = self._clock() + self._limits.timeout_s
        pieces, length = [], 0
        for piece in self._template.generate(**variables):
            length += len(piece)
            if length > limit:
                raise InvalidRequest(f"messages are rendered to more than {limit} characters, the limit for their length", field="messages")
            if self._clock() > deadline:
                raise InvalidRequest(f"messages take the chat template more than {self._limits.timeout_s:g} s, the limit", field="messages")
            pieces.append(piece)
        return "".join(pieces)


class _GenerationBlock(Extension):
    """`{% generation %}`, with which training templates frame the assistant's words: here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, in a scope of its own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    def strftime_now(form: str) -> str:
        if not _TIME_FORMAT.fullmatch(form):
            raise _Refused("the time format is too long or has a width")
        return now().strftime(form)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def _strings_in(*trees: nodes.Node) -> set[str]:
    constants = [node for tree in trees for node in ([tree] if isinstance(tree, nodes.Const) else tree.find_all(nodes.Const))]
    return {constant.value for constant in constants if isinstance(constant.value, str)}


def _raise_exception(message: object) -> None:
    raise _Refused(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models read it: Jinja's own filter would escape it for HTML. Marks stay marks."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if ensure_ascii:
        for mark in MARKS:
            text = text.replace(json.dumps(mark)[1:-1], mark)
    return text


def _for_people(error: TemplateError) -> str:
    return (error.message or type(error).__name__)[:_MESSAGE_CHARACTERS].translate(_WITHOUT_MARKS)
