"""Chats as token ids, equal to what the chat template and the tokenizer service give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Tokenizer

from compute_svc.bundled.train_tokenizer import END_OF_TEXT, END_OF_TURN, special_id


class Turn(NamedTuple):
    """One message of a chat; the role is system, user or assistant."""

    role: str
    content: str


class ChatEncoder:
    """Encodes turns. Special tokens that are written in a message are encoded as plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._role_ids = {role: special_id(tokenizer, f"<|{role}|>") for role in ("system", "user", "assistant")}
        self._end_id = special_id(tokenizer, END_OF_TURN)
        self.stop_ids: tuple[int, ...] = (self._end_id, special_id(tokenizer, END_OF_TEXT))

    def turn(self, turn: Turn) -> list[int]:
        """Ids of a whole turn: role, content and end."""
        return [self._role_ids[turn.role], *self._tokenizer.encode(turn.content).ids, self._end_id]

    def prompt(self, turns: Iterable[Turn]) -> list[int]:
        """Ids of a chat up to where the assistant is to speak."""
        return [*(token for turn in turns for token in self.turn(turn)), self._role_ids["assistant"]]

    def answer(self, content: str) -> list[int]:
        """Ids the assistant is to say after a prompt: content and end."""
        return [*self._tokenizer.encode(content).ids, self._end_id]

    def text(self, token_ids: list[int]) -> str:
        """Text of an answer."""
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=False)
        return text
