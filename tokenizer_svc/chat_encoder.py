"""Encodes chats: renders them, keeps special tokens in users' words text, and finds where the system prompt ends."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping
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
from triserve.rpc.errors import InvalidRequest

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
    """

    messages: tuple[Message, ...]
    arguments: Mapping[str, TemplateValue] = MappingProxyType({})
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class EncodedChat(NamedTuple):
    """A chat's ids, and how many of the first belong to its system prompt; 0 = it has none."""

    token_ids: list[int]
    system_tokens: int


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
        """The ids of a chat as the model's author meant it, its special tokens from the template alone.

        Args:
            chat: checked by `InputLimits.check_chat`.
            max_tokens: most ids; None = no limit.
            keep_last: so many of the last ids are kept; None = all are.

        Raises:
            InvalidRequest: the template refuses the messages, fails on them or prints nothing of one of them.
            PromptTooLong: more ids than `max_tokens`.
        """
        chat = chat._replace(messages=self.forms.adapt(chat.messages))
        text = self._render(chat)
        self.forms.check_printed(chat.messages, chat.arguments, add_generation_prompt=chat.add_generation_prompt)
        token_ids = self._encode(text, max_tokens, keep_last)
        # Where the first ids were left out, what is left does not begin as every chat with this system prompt.
        is_whole = keep_last is None or len(token_ids) < keep_last
        return EncodedChat(token_ids, self._system_tokens(chat, text, token_ids) if is_whole else 0)

    def _encode(self, text: str, max_tokens: int | None = None, keep_last: int | None = None) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, field="messages", max_tokens=max_tokens, keep_last=keep_last)

    def _render(self, chat: Chat) -> str:
        """What the template prints, its special tokens as aliases and users' words as they came."""
        shielded, mark = self._shield(chat)
        end = None
        if chat.continue_final_message:
            shielded, end = self._with_end(shielded)
        printed = self._template.render(shielded.messages, shielded.arguments, add_generation_prompt=chat.add_generation_prompt)
        if end is not None:
            printed = _up_to(printed, end, chat.messages[-1].content, mark)
        return self._tokenizer.special_tokens.to_aliases(printed, mark)

    def _with_end(self, shielded: Chat) -> tuple[Chat, str]:
        """The chat with a mark behind its last words, and the mark."""
        *before, last = shielded.messages
        strings = [text for message in shielded.messages for text in (message.role, message.content, message.name or "")]
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
        texts = {*contents, *((text, False) for text in (*names, *values))}
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
            )
            for message in chat.messages
        )
        arguments = {name: shielded(value) if isinstance(value, str) else value for name, value in chat.arguments.items()}
        return chat._replace(messages=messages, arguments=arguments), mark

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
        parts = [self._today().isoformat(), [message.variables() for message in asked.messages], sorted(asked.arguments.items())]
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


def _up_to(printed: str, end: str, said: str, mark: str | None) -> str:
    """What was printed up to the end of the last turn's words, which stand there whole but for space around them.

    Args:
        printed: with the turn's words, `end` and a space.
        end: as `ChatEncoder._with_end` gives it.
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
