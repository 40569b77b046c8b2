"""What a chat template takes, found by trying it: parts or a string as content, developer turns, and which turns it prints at all.

Templates fail silently: one that loops over the parts of a content prints nothing for a string, one without a branch for a role prints
nothing for its turns. The client would get a fluent answer to a question the model never saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenizer_svc.chat_template import ChatTemplate, Message, TemplateValue
from tokenizer_svc.tool_forms import ToolForms
from tokenizer_svc.tools import Tool
from triserve.rpc.errors import InvalidRequest

_PROBE = re.compile("zq([0-9]+|t[0-9]+|c[0-9]+n[0-9]+)qz")
# A turn of each role where templates expect it, last or before the first question: its index, and who speaks.
_PLACES: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "user": (0, ("user",)),
    "assistant": (1, ("user", "assistant")),
    "system": (0, ("system", "user")),
    "developer": (0, ("developer", "user")),
    "tool": (2, ("user", "assistant", "tool")),
}


class TemplateForms:
    """Brings chats into the form one template takes.

    Args:
        template: tried here, a dozen renderings.

    Attributes:
        roles_with_parts: roles whose content the template takes as a list of parts and not as a string.
        knows_developer: whether the template names the developer's role and prints its turns; if not, they are the system's.
        tools: what the template does with tools and calls.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.roles_with_parts: frozenset[str] = frozenset()
        for role in _PLACES:
            if role != "tool":
                self._find_parts(role)
        self.tools = ToolForms(template, self.roles_with_parts)
        self._find_parts("tool")
        self.knows_developer = template.names("developer") and self._prints("developer")

    def __str__(self) -> str:
        parts = ", ".join(sorted(self.roles_with_parts)) or "no role"
        return f"content as parts for {parts}, developer turns as {'themselves' if self.knows_developer else 'the system'}, {self.tools}"

    def adapt(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The turns as the template takes them.

        Raises:
            InvalidRequest: see `ToolForms.adapt`.
        """
        return tuple(self._adapted(message, f"messages[{index}]") for index, message in enumerate(messages))

    def check_printed(
        self,
        messages: Sequence[Message],
        arguments: Mapping[str, TemplateValue],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool,
    ) -> None:
        """Checks that the template prints something of every turn that says anything, every call and every tool.

        The turns are rendered again with a word of its own in place of each one's text: what a template does with a text - trim it, cut
        the reasoning out of it, write it as JSON, leave it out beside calls - is its author's business, to lose the whole turn is not.

        Args:
            messages: adapted; the template has printed them without an error.
            arguments: of the template.
            tools: read.
            add_generation_prompt: whether the assistant's header comes last.

        Raises:
            InvalidRequest: names the first turn that is lost, or says that tools are.
        """
        says = [index for index, message in enumerate(messages) if message.content.strip()]
        printed = self._printed(messages, says, arguments, tools=tools, add_generation_prompt=add_generation_prompt)
        if printed is None:
            return  # the template takes none but certain texts, and has taken these
        if not printed.issuperset(_tool_word(number) for number in range(len(tools))):
            raise InvalidRequest("tools would not reach the model: its chat template does not print them in such a chat", field="tools")
        for index, message in enumerate(messages):
            field = f"messages[{index}]"
            if not printed.issuperset(_call_word(index, number) for number in range(len(message.tool_calls))):
                raise InvalidRequest(
                    f"{field}.tool_calls would not reach the model: its chat template prints no tool calls at this place",
                    field=f"{field}.tool_calls",
                )
            if index in says and not message.tool_calls and str(index) not in printed:
                raise InvalidRequest(
                    f"{field} would not reach the model: its chat template prints nothing of a turn of role {message.role!r} at this place",
                    field=field,
                )

    def _find_parts(self, role: str) -> None:
        if not self._prints(role) and self._prints(role, as_parts=True):
            self.roles_with_parts |= {role}

    def _adapted(self, message: Message, field: str) -> Message:
        message = self.tools.adapt(message, field)
        role = message.role
        if role == "developer" and not self.knows_developer:
            role = "system"
        # What a template does with a role we cannot foresee it does, if anything, with the user's.
        as_parts = (role if role in _PLACES else "user") in self.roles_with_parts
        return replace(message, role=role, as_parts=as_parts) if as_parts or role != message.role else message

    def _prints(self, role: str, *, as_parts: bool = False) -> bool:
        index, roles = _PLACES[role]
        turns: Sequence[Message]
        turns = [Message(one, "x", as_parts=as_parts if one == role else one in self.roles_with_parts) for one in roles]
        if role == "tool" and self.tools.calls is not None:
            turns = self.tools.call_turns("x", as_parts=as_parts)
        printed = self._printed(turns, [index], {}, add_generation_prompt=False)
        return printed is not None and str(index) in printed

    def _printed(
        self,
        messages: Sequence[Message],
        probed: Sequence[int],
        arguments: Mapping[str, TemplateValue],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool,
    ) -> set[str] | None:
        """Words of the probed turns, calls and tools that come out; None = the template refuses the probes."""
        turns = list(messages)
        for index in probed:
            turns[index] = replace(turns[index], content=f"zq{index}qz", reasoning=None)
        for index, turn in enumerate(turns):
            calls = (replace(call, name=f"zq{_call_word(index, number)}qz") for number, call in enumerate(turn.tool_calls))
            turns[index] = replace(turn, tool_calls=tuple(calls))
        named = [replace(tool, name=f"zq{_tool_word(number)}qz") for number, tool in enumerate(tools)]
        try:
            text = self._template.render(turns, arguments, tools=named, add_generation_prompt=add_generation_prompt, is_probe=True)
        except InvalidRequest:
            return None
        # Some templates change the case of what they print.
        return set(_PROBE.findall(text.lower()))


def _tool_word(number: int) -> str:
    return f"t{number}"


def _call_word(index: int, number: int) -> str:
    return f"c{index}n{number}"
