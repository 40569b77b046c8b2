"""Encodes chats: renders them, keeps special tokens in users' words text, and finds where the system prompt ends."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date
from itertools import takewhile
from types import MappingProxyType
from typing import NamedTuple

from tokenizer_svc.chat_template import ChatTemplate, Message, TemplateValue
from tokenizer_svc.special_tokens import insert_mark, pick_mark
from tokenizer_svc.system_prompts import SystemPrompt, SystemPrompts, common_len
from tokenizer_svc.template_forms import TemplateForms
from tokenizer_svc.tokenizer import Tokenizer
from tokenizer_svc.tools import Tool, ToolCall, strings_in, with_strings
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.limits import MAX_PROMPT_END_CHARS

SYSTEM_ROLES = frozenset({"system", "developer"})
# What the operator or the model itself wrote may use tokens, such as those around a tool call, that are not special.
_TRUSTED_ROLES = frozenset({*SYSTEM_ROLES, "assistant"})


class Chat(NamedTuple):
    """A chat to be encoded.

    Attributes:
        messages: oldest first, at least one.
        arguments: further variables of the template.
        add_generation_prompt: whether the assistant's header comes last.
        continue_final_message: whether the last turn is left open: what it says comes last.
        tools: what the model may call.
        add_special_tokens: whether the tokenizer adds its own special tokens to the template's.
    """

    messages: tuple[Message, ...]
    arguments: Mapping[str, TemplateValue] = MappingProxyType({})
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: tuple[Tool, ...] = ()
    add_special_tokens: bool = False


class EncodedChat(NamedTuple):
    """A chat's ids.

    Attributes:
        token_ids: of all of it.
        system_tokens: how many of the first belong to its system prompt; 0 = it has none.
        end: the last characters, where they are the template's own.
    """

    token_ids: list[int]
    system_tokens: int
    end: str = ""


class ChatEncoder:
    """Encodes chats with one template and one tokenizer; threads may share it.

    Args:
        template: the model's.
        tokenizer: the model's.
        system_prompts: where encoded system prompts are remembered.
        today: the local date, on which templates may depend.

    Attributes:
        forms: what the template takes.
    """

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        system_prompts: SystemPrompts,
        *,
        today: Callable[[], date] = date.today,
    ) -> None:
        self._template = template
        self.forms = TemplateForms(template)
        self._tokenizer = tokenizer
        self._system_prompts = system_prompts
        self._today = today

    def encode(self, chat: Chat, *, max_tokens: int | None, keep_last: int | None = None) -> EncodedChat:
        """The ids of a chat as the model's author meant it, its special tokens from the template alone unless more are asked for.

        Args:
            chat: checked by `InputLimits.check_chat`.
            max_tokens: most ids; None = no limit.
            keep_last: so many of the last ids are kept; None = all are.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them or prints nothing of one of them.
            PromptTooLong: more ids than `max_tokens`.
        """
        if chat.tools and not self.forms.tools.takes_tools:
            raise InvalidRequest("tools is not supported: the model's chat template takes no tools", field="tools")
        tools = tuple(tool.read(f"tools[{index}]") for index, tool in enumerate(chat.tools))
        chat = chat._replace(messages=self.forms.adapt(chat.messages), tools=tools)
        text, end = self._render_with_end(chat)
        self.forms.check_printed(chat.messages, chat.arguments, tools=tools, add_generation_prompt=chat.add_generation_prompt)
        token_ids = self._tokenizer.encode(
            text, add_special_tokens=chat.add_special_tokens, field="messages", max_tokens=max_tokens, keep_last=keep_last
        )
        # Where the first ids were left out, or others stand before them, it does not begin as every chat with this system prompt.
        is_whole = (keep_last is None or len(token_ids) < keep_last) and not chat.add_special_tokens
        return EncodedChat(token_ids, self._system_tokens(chat, text, token_ids) if is_whole else 0, end)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, field="messages")

    def _render(self, chat: Chat) -> str:
        """What the template prints, its special tokens as aliases and users' words as they came."""
        return self._render_with_end(chat)[0]

    def _render_with_end(self, chat: Chat) -> tuple[str, str]:
        """As `_render`, and the last characters, special tokens by their names, if the template wrote them behind the last turn."""
        shielded, mark = self._shield(chat)
        open_end = None
        if chat.continue_final_message:
            shielded, open_end = self._with_open_end(shielded)
        printed = self._template.render(
            shielded.messages, shielded.arguments, tools=shielded.tools, add_generation_prompt=chat.add_generation_prompt
        )
        end = ""
        if open_end is not None:
            printed = _up_to(printed, open_end, chat.messages[-1].content, mark)
        elif chat.add_generation_prompt:
            said = shielded.messages[-1].content.strip()
            is_said = said and printed.rstrip().endswith(said)
            end = "" if is_said else printed[-MAX_PROMPT_END_CHARS:]
        return self._tokenizer.special_tokens.to_aliases(printed, mark), end.replace(mark, "") if mark else end

    def _with_open_end(self, shielded: Chat) -> tuple[Chat, str]:
        """The chat with a mark behind its last words, and the mark."""
        *before, last = shielded.messages
        strings = [
            text for message in shielded.messages for text in (message.role, message.content, message.name or "", message.reasoning or "")
        ]
        strings += _tool_strings(shielded)
        strings += [value for value in shielded.arguments.values() if isinstance(value, str)]
        end = pick_mark(strings, never=self._template.source)
        if end is None:
            raise InvalidRequest("messages have every Unicode noncharacter: where the last one ends cannot be told", field="messages")
        # A template that trims takes the space away, and tells so.
        return shielded._replace(messages=(*before, replace(last, content=f"{last.content}{end} "))), end

    def _shield(self, chat: Chat) -> tuple[Chat, str | None]:
        """The chat with a mark wherever users' words could make a special token, and the mark; None = nowhere."""
        break_points = self._tokenizer.special_tokens.break_points
        cuts = self._template.cuts
        contents = {(message.content, message.role in _TRUSTED_ROLES) for message in chat.messages}
        names = [message.name for message in chat.messages if message.name is not None]
        values = [value for value in chat.arguments.values() if isinstance(value, str)]
        texts = {*contents, *((text, False) for text in (*names, *values, *_tool_strings(chat)))}
        texts |= {(message.reasoning, True) for message in chat.messages if message.reasoning is not None}
        points = {key: found for key in texts if (found := break_points(key[0], cuts, model_s_own=key[1]))}
        # A template may build a special token around the role. One it does not know stands apart from what is beside it.
        foreign = {message.role for message in chat.messages} - self._template.known_roles
        if not points and not foreign:
            return chat, None
        mark = pick_mark([*foreign, *(text for text, _ in texts)], never=self._template.source)
        if mark is None:
            raise InvalidRequest("messages have a special token's name and every Unicode noncharacter at once", field="messages")
        roles = {role: f"{mark}{insert_mark(role, mark, break_points(role))}{mark}" for role in foreign}

        def shielded(text: str, trusted: bool = False) -> str:
            return insert_mark(text, mark, points.get((text, trusted), ()))

        messages = tuple(
            replace(
                message,
                role=roles.get(message.role, message.role),
                content=shielded(message.content, message.role in _TRUSTED_ROLES),
                name=None if message.name is None else shielded(message.name),
                tool_calls=tuple(_shielded_call(call, shielded) for call in message.tool_calls),
                tool_call_id=None if message.tool_call_id is None else shielded(message.tool_call_id),
                reasoning=None if message.reasoning is None else shielded(message.reasoning, True),
            )
            for message in chat.messages
        )
        arguments = {name: shielded(value) if isinstance(value, str) else value for name, value in chat.arguments.items()}
        tools = tuple(
            replace(
                tool,
                name=shielded(tool.name),
                description=None if tool.description is None else shielded(tool.description),
                parameters=with_strings(tool.parameters, shielded),
            )
            for tool in chat.tools
        )
        return chat._replace(messages=messages, arguments=arguments, tools=tools), mark

    def _system_tokens(self, chat: Chat, text: str, token_ids: list[int]) -> int:
        system = tuple(takewhile(lambda message: message.role in SYSTEM_ROLES, chat.messages))
        if not system:
            return 0
        asked = chat._replace(messages=system, add_generation_prompt=False, continue_final_message=False)
        key = self._key(asked)
        prompt = self._system_prompts.get(key)
        if prompt is None:
            prompt = self._find_system_prompt(asked)
            self._system_prompts.put(key, prompt)
        return prompt.common_tokens(text, token_ids)

    def _key(self, asked: Chat) -> bytes:
        parts = [
            self._today().isoformat(),
            [message.variables() for message in asked.messages],
            sorted(asked.arguments.items()),
            [tool.variables() for tool in asked.tools],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).digest()

    def _find_system_prompt(self, asked: Chat) -> SystemPrompt:
        """What every chat with this system prompt begins with, found by rendering some."""
        short = self._try_turns(asked)
        contents = [message.content.strip() for message in asked.messages]
        if short is None or not all(content in short for content in contents):
            short = self._try_turns(asked, "0")
        # Some templates move the system prompt to the last turn: then longer chats do not begin as short ones do.
        long = self._try_turns(asked, "x", "y", "z")
        text = "" if short is None or long is None else short[: common_len(short, long)]
        if not text or not all(content in text for content in contents):
            return SystemPrompt.none()
        end = max(text.rfind(content) + len(content) for content in contents)
        return SystemPrompt.of(text[:end], array("I", self._encode(text)))

    def _try_turns(self, asked: Chat, *contents: str) -> str | None:
        turns = (Message("assistant" if index % 2 else "user", content) for index, content in enumerate(contents))
        try:
            return self._render(asked._replace(messages=(*asked.messages, *self.forms.adapt(tuple(turns)))))
        except InvalidRequest:
            return None


def _tool_strings(chat: Chat) -> Iterator[str]:
    """All strings of tools, calls and results' ids: whoever wrote them, they are no template's."""
    for tool in chat.tools:
        yield from strings_in([tool.name, tool.description, tool.parameters])
    for message in chat.messages:
        for call in message.tool_calls:
            yield from strings_in([call.id, call.name, call.arguments if call.entries is None else call.entries])
        if message.tool_call_id is not None:
            yield message.tool_call_id


def _shielded_call(call: ToolCall, shielded: Callable[[str], str]) -> ToolCall:
    return replace(
        call,
        id=shielded(call.id),
        name=shielded(call.name),
        arguments=call.arguments if call.entries is not None else shielded(call.arguments),
        entries=with_strings(call.entries, shielded),
    )


def _up_to(printed: str, end: str, said: str, mark: str | None) -> str:
    """What was printed up to the end of the last turn's words, which stand there whole but for space around them.

    Args:
        printed: with the turn's words, `end` and a space.
        end: as `ChatEncoder._with_open_end` gives it.
        said: what the turn says.
        mark: in users' strings; None = in none.

    Raises:
        InvalidRequest: they do not.
    """
    before, found, after = printed.rpartition(end)
    if not after.startswith(" "):
        before = before.rstrip()
    if not found or not (before.replace(mark, "") if mark else before).rstrip().endswith(said.strip()):
        raise InvalidRequest(
            "continue_final_message is true, but the model's chat template does not print the last message as it is",
            field="continue_final_message",
        )
    return before
