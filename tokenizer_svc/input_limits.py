"""Checks what callers send, before any work is done for it: one place for all ways in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_svc.chat_encoder import Chat
from tokenizer_svc.chat_template import Message
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest

_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NAME_CHARACTERS = 256
_TOOL_NAME = re.compile(rf"[A-Za-z0-9_.:/-]{{1,{limits.MAX_TOOL_NAME_CHARS}}}")
_CALLER = "assistant"
BYTES_PER_TOKEN_ID = 4


@dataclass(frozen=True)
class InputLimits:
    """What is accepted.

    Attributes:
        max_bytes: of one text, or of one chat's words, roles, names, arguments, tools and calls together, in UTF-8.
        max_messages: of one chat.
        template_arguments: names of arguments that callers may give.
    """

    max_bytes: int
    max_messages: int
    template_arguments: frozenset[str]

    def check_text(self, text: str) -> int:
        """The text's bytes.

        Raises:
            InvalidRequest: too long, or not Unicode text; names "prompt".
        """
        return self._within_limit(utf8_len(text, field="prompt"), field="prompt")

    def check_chat(self, chat: Chat) -> int:
        """The chat's bytes.

        Raises:
            InvalidRequest: naming the message or argument, and the limit.
        """
        if not chat.messages:
            raise InvalidRequest("messages is empty, at least one is needed", field="messages")
        if len(chat.messages) > self.max_messages:
            raise InvalidRequest(f"messages has {len(chat.messages)} turns, the limit is {self.max_messages}", field="messages")
        if chat.continue_final_message and (chat.messages[-1].role != "assistant" or chat.messages[-1].tool_calls):
            raise InvalidRequest(
                "continue_final_message is true, the last message must be an assistant's with it, and without tool calls",
                field="continue_final_message",
            )
        total = self._check_tools(chat)
        for index, message in enumerate(chat.messages):
            where = f"messages[{index}]"
            if not _ROLE.fullmatch(message.role):
                limit = "1 to 64 ASCII letters, digits, '_', '.' or '-'"
                raise InvalidRequest(f"{where}.role has {len(message.role)} characters and must be {limit}", field=f"{where}.role")
            total += len(message.role) + utf8_len(message.content, field=f"{where}.content")
            if message.name is not None:
                if not 1 <= len(message.name) <= _NAME_CHARACTERS:
                    limit = f"1 to {_NAME_CHARACTERS} are allowed"
                    raise InvalidRequest(f"{where}.name has {len(message.name)} characters, {limit}", field=f"{where}.name")
                total += utf8_len(message.name, field=f"{where}.name")
            total += _check_calls(message, where)
        return self._within_limit(total + self._check_arguments(chat), field="messages")

    def check_token_ids(self, token_ids: Sequence[int]) -> int:
        """The ids' bytes, four each.

        Raises:
            InvalidRequest: too many; names "token_ids".
        """
        most = self.max_bytes // BYTES_PER_TOKEN_ID
        if len(token_ids) > most:
            raise InvalidRequest(f"token_ids has {len(token_ids)} ids, the limit is {most}", field="token_ids")
        return len(token_ids) * BYTES_PER_TOKEN_ID

    def _check_tools(self, chat: Chat) -> int:
        """Bytes of all tools."""
        if len(chat.tools) > limits.MAX_TOOLS:
            raise InvalidRequest(f"tools has {len(chat.tools)} functions, the limit is {limits.MAX_TOOLS}", field="tools")
        if len({tool.name for tool in chat.tools}) < len(chat.tools):
            raise InvalidRequest("tools has two functions of one name", field="tools")
        total = 0
        for index, tool in enumerate(chat.tools):
            field = f"tools[{index}].function"
            if not _TOOL_NAME.fullmatch(tool.name):
                limit = f"1 to {limits.MAX_TOOL_NAME_CHARS} ASCII letters, digits, '_', '.', ':', '/' or '-'"
                raise InvalidRequest(f"{field}.name has {len(tool.name)} characters and must be {limit}", field=f"{field}.name")
            total += len(tool.name) + utf8_len(tool.description or "", field=f"{field}.description")
            total += utf8_len(tool.parameters_json or "", field=f"{field}.parameters")
        return total

    def _check_arguments(self, chat: Chat) -> int:
        total = 0
        for name, value in chat.arguments.items():
            if name not in self.template_arguments:
                allowed = ", ".join(sorted(self.template_arguments)) or "none"
                raise InvalidRequest(f"template_arguments has {name[:64]!r}, allowed are: {allowed}", field="template_arguments")
            total += len(name) + (utf8_len(value, field="template_arguments") if isinstance(value, str) else 8)
        return total

    def _within_limit(self, num_bytes: int, *, field: str) -> int:
        if num_bytes > self.max_bytes:
            raise InvalidRequest(f"{field} has {num_bytes} bytes, the limit is {self.max_bytes}", field=field)
        return num_bytes


def _check_calls(message: Message, where: str) -> int:
    """Bytes of what a turn calls, of the call it answers, and of what was thought before it."""
    calls, most = message.tool_calls, limits.MAX_TOOL_CALLS
    if calls and message.role != _CALLER:
        raise InvalidRequest(f"{where} has tool_calls, which only a turn of role {_CALLER} may have", field=f"{where}.tool_calls")
    if len(calls) > most:
        raise InvalidRequest(f"{where}.tool_calls has {len(calls)} calls, the limit is {most}", field=f"{where}.tool_calls")
    total = utf8_len(message.reasoning or "", field=f"{where}.reasoning_content")
    if message.tool_call_id is not None:
        total += _check_call_id(message.tool_call_id, f"{where}.tool_call_id")
    for index, call in enumerate(calls):
        field = f"{where}.tool_calls[{index}]"
        if not 1 <= len(call.name) <= limits.MAX_TOOL_NAME_CHARS:
            limit = f"1 to {limits.MAX_TOOL_NAME_CHARS} are allowed"
            raise InvalidRequest(f"{field}.function.name has {len(call.name)} characters, {limit}", field=f"{field}.function.name")
        total += _check_call_id(call.id, f"{field}.id") + utf8_len(call.name, field=f"{field}.function.name")
        total += utf8_len(call.arguments, field=f"{field}.function.arguments")
    return total


def _check_call_id(call_id: str, field: str) -> int:
    if len(call_id) > limits.MAX_TOOL_CALL_ID_CHARS:
        raise InvalidRequest(f"{field} has {len(call_id)} characters, the limit is {limits.MAX_TOOL_CALL_ID_CHARS}", field=field)
    return utf8_len(call_id, field=field)


def utf8_len(text: str, *, field: str) -> int:
    """Bytes of a text in UTF-8.

    Raises:
        InvalidRequest: half of a surrogate pair is in it, so that it is no Unicode text.
    """
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} is not Unicode text: it has a lone surrogate at character {error.start}", field=field) from None
