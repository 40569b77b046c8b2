"""What a chat template takes, found by trying it: parts or a string as content, developer turns, and which turns it prints at all.

Templates fail silently: one that loops over the parts of a content prints nothing for a string, one without a branch for a role prints
nothing for its turns. The client would get a fluent answer to a question the model never saw.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tokenizer_svc.chat_template import ChatTemplate, Message, TemplateValue
from triserve.rpc.errors import InvalidRequest

_PROBE = re.compile("zq([0-9]+)qz")
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
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.roles_with_parts: frozenset[str] = frozenset()
        for role in _PLACES:
            if not self._prints(role) and self._prints(role, as_parts=True):
                self.roles_with_parts |= {role}
        self.knows_developer = template.names("developer") and self._prints("developer")

    def __str__(self) -> str:
        parts = ", ".join(sorted(self.roles_with_parts)) or "no role"
        return f"content as parts for {parts}, developer turns as {'themselves' if self.knows_developer else 'the system'}"

    def adapt(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The turns as the template takes them."""
        return tuple(map(self._adapted, messages))

    def check_printed(self, messages: Sequence[Message], arguments: Mapping[str, TemplateValue], *, add_generation_prompt: bool) -> None:
        """Checks that the template prints something of every turn that says anything.

        The turns are rendered again with a word of its own in place of each one's text: what a template does with a text - trim it, cut
        the reasoning out of it, write it as JSON - is its author's business, to lose the whole turn is not.

        Args:
            messages: adapted; the template has printed them without an error.
            arguments: of the template.
            add_generation_prompt: whether the assistant's header comes last.

        Raises:
            InvalidRequest: names the first turn that is lost.
        """
        says = [index for index, message in enumerate(messages) if message.content.strip()]
        printed = self._printed(messages, says, arguments, add_generation_prompt=add_generation_prompt)
        if printed is None:
            return  # the template takes none but certain texts, and has taken these
        for index in says:
            if index not in printed:
                field = f"messages[{index}]"
                raise InvalidRequest(
                    f"{field} would not reach the model: its chat template prints nothing of a turn of role"
                    f" {messages[index].role!r} at this place",
                    field=field,
                )

    def _adapted(self, message: Message) -> Message:
        role = message.role
        if role == "developer" and not self.knows_developer:
            role = "system"
        # What a template does with a role we cannot foresee it does, if anything, with the user's.
        as_parts = (role if role in _PLACES else "user") in self.roles_with_parts
        return replace(message, role=role, as_parts=as_parts) if as_parts or role != message.role else message

    def _prints(self, role: str, *, as_parts: bool = False) -> bool:
        index, roles = _PLACES[role]
        turns = [Message(one, "x", as_parts=as_parts if one == role else one in self.roles_with_parts) for one in roles]
        printed = self._printed(turns, [index], {}, add_generation_prompt=False)
        return printed is not None and index in printed

    def _printed(
        self,
        messages: Sequence[Message],
        probed: Sequence[int],
        arguments: Mapping[str, TemplateValue],
        *,
        add_generation_prompt: bool,
    ) -> set[int] | None:
        """Which of the probed turns come out; None = the template refuses the probes."""
        turns = list(messages)
        for index in probed:
            turn = turns[index]
            turns[index] = Message(turn.role, f"zq{index}qz", turn.name, turn.as_parts)
        try:
            text = self._template.render(turns, arguments, add_generation_prompt=add_generation_prompt)
        except InvalidRequest:
            return None
        # Some templates change the case of what they print.
        return {int(number) for number in _PROBE.findall(text.lower())}
