"""What a chat template does with tools and tool calls, found by trying it.

Templates of different families want a call's arguments as an object or as text, a content of null beside it, ids of nine letters; one that does
not get what it wants fails, prints Python in place of JSON, or prints nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from tokenizer_svc.chat_template import ChatTemplate, Message
from tokenizer_svc.tools import Tool, ToolCall, read_object
from triserve.rpc.errors import InvalidRequest

_TOOL_NAME, _CALL_NAME = "zqtoolqz", "zqcallqz"
_KEY, _VALUE = "zqkeyqz", "zqvalueqz"
_ARGUMENTS = {_KEY: _VALUE}
_LONG_ID, _SHORT_ID_LETTERS = "call_zq0", 9
_TOOL = Tool(_TOOL_NAME, "x", parameters={"type": "object", "properties": {"x": {"type": "string", "description": "x"}}, "required": ["x"]})
# Marks in a template's text, and the form in which models that were trained with it write calls.
_XML = ("<function=", "<arg_key>", "<parameter=")
_MARKED = (
    ("<｜tool▁call", "deepseek"),  # noqa: RUF001
    ("[TOOL_CALLS]", "mistral"),
    ("<tool_call>", "hermes"),
    ("<|channel|>", "harmony"),
)
_LLAMA = ("<|python_tag|>", '"parameters": ')


class CallForm(NamedTuple):
    """How a template takes a turn with calls.

    Attributes:
        as_objects: arguments as objects and not as text.
        null_content: null and not an empty string as the content of a turn that says nothing.
        short_ids: ids of nine letters and digits.
        keeps_text: whether a turn may say something beside its calls; if not, only the calls are given to it.
    """

    as_objects: bool
    null_content: bool
    short_ids: bool
    keeps_text: bool = True


class ToolForms:
    """Brings tools and calls into the form one template takes.

    Args:
        template: tried here, a dozen renderings.
        roles_with_parts: see `TemplateForms`.

    Attributes:
        takes_tools: whether it prints tools.
        calls: how it takes calls; None = it prints none.
        call_format: how it writes them, as the contract names it; empty = in a form that has no name.
    """

    def __init__(self, template: ChatTemplate, roles_with_parts: Collection[str]) -> None:
        self._template = template
        self._parts = roles_with_parts
        system, user = (Message(role, "x", as_parts=role in roles_with_parts) for role in ("system", "user"))
        tried = (self._try((user,)), self._try((system, user)))
        self.takes_tools = "tools" in template.reads and any(_TOOL_NAME in text for text in tried)
        self.calls = self._find_form()
        self.call_format = self._format() if self.takes_tools else ""

    def __str__(self) -> str:
        if not self.takes_tools:
            return "no tools"
        calls = self.calls
        how = "none" if calls is None else f"with arguments as {'objects' if calls.as_objects else 'text'}"
        return f"tools, calls {how}, written as {self.call_format or 'no parser knows'}"

    def adapt(self, message: Message, field: str) -> Message:
        """A turn as the template takes it.

        Raises:
            InvalidRequest: arguments are to be an object and are none; names the field.
        """
        form = self.calls
        if form is None:
            return message
        if form.short_ids and message.tool_call_id is not None:
            message = replace(message, tool_call_id=_short(message.tool_call_id))
        if not message.tool_calls:
            return message
        calls = tuple(_adapted(call, form, f"{field}.tool_calls[{index}]") for index, call in enumerate(message.tool_calls))
        is_null = form.null_content if not message.content else not form.keeps_text
        return replace(message, tool_calls=calls, is_null=is_null)

    def call_turns(self, result: str, *, as_parts: bool) -> tuple[Message, ...]:
        """A question, a call and its result, to see whether the template prints that."""
        call = ToolCall(_LONG_ID, _CALL_NAME, json.dumps(_ARGUMENTS))
        turns = (
            Message("user", "x", as_parts="user" in self._parts),
            Message("assistant", "", as_parts="assistant" in self._parts, tool_calls=(call,)),
            Message("tool", result, as_parts=as_parts, tool_call_id=_LONG_ID),
        )
        return tuple(self.adapt(turn, "messages") for turn in turns)

    def _find_form(self) -> CallForm | None:
        for short_ids, null_content, as_objects in product((False, True), (True, False), (True, False)):
            form = CallForm(as_objects, null_content, short_ids)
            if self._takes(form, ""):
                return form._replace(keeps_text=self._takes(form, "x"))
        return None

    def _takes(self, form: CallForm, content: str) -> bool:
        text = self._sample(form, content)
        if form.null_content and text.count("None") > self._sample(form._replace(null_content=False), content).count("None"):
            return False
        # Python's way of writing a dictionary, and JSON in a JSON string, are no form of it that a model was trained with.
        return _CALL_NAME in text and _VALUE in text and f"'{_KEY}'" not in text and f'\\"{_KEY}' not in text

    def _sample(self, form: CallForm, content: str) -> str:
        self.calls = form
        for as_parts in (False, True):
            question, call, result = self.call_turns("x", as_parts=as_parts)
            # What is beside a call is given to the template as it is, to see what it does.
            if text := self._try((question, replace(call, content=content, is_null=form.null_content and not content), result)):
                return text
        return ""

    def _try(self, messages: tuple[Message, ...]) -> str:
        """What is printed of some turns with a tool; nothing if the template refuses them."""
        try:
            return self._template.render(messages, {}, tools=(_TOOL,), add_generation_prompt=False, is_probe=True)
        except InvalidRequest:
            return ""

    def _format(self) -> str:
        source = self._template.source
        form = self.calls
        sample = "" if form is None else self._sample(form, "")
        self.calls = form
        if any(mark in source for mark in _XML):
            return ""
        for mark, name in _MARKED:
            if mark in source:
                return name
        if f"{_CALL_NAME}(" in sample:
            return "pythonic"
        if any(mark in source for mark in _LLAMA):
            return "llama3"
        return "json" if not sample or f'"{_CALL_NAME}"' in sample else ""


def _adapted(call: ToolCall, form: CallForm, field: str) -> ToolCall:
    entries = None
    if form.as_objects:
        try:
            entries = read_object(call.arguments.strip() or "{}", f"{field}.function.arguments")
        except InvalidRequest as error:
            raise InvalidRequest(f"{error.message}, as which the model's chat template takes it", field=error.field) from None
    return replace(call, id=_short(call.id) if form.short_ids else call.id, entries=entries)


def _short(call_id: str) -> str:
    """An id of nine letters and digits in place of another one, always the same."""
    return hashlib.sha256(call_id.encode()).hexdigest()[:_SHORT_ID_LETTERS]
