"""A kept answer and its sealed bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from prompt_cache.keys import CacheKey
from prompt_cache.sealing import CorruptEntry, Sealer

FinishReason = Literal["stop", "length"]

_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length")
_MAX_TOKEN_ID = 2**32 - 1


class CachedDelta(NamedTuple):
    """One piece of an answer, as it was delivered."""

    # May be empty, as may be token_ids.
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CachedAnswer:
    """A finished answer, ready to be replayed delta by delta."""

    deltas: tuple[CachedDelta, ...]
    finish_reason: FinishReason
    # Tokens of the prompt, for the usage report.
    prompt_tokens: int
    # When it was finished, in whole seconds since 1970.
    created_at: int
    # How long it took to make, in milliseconds.
    took_ms: int = 0

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(delta.text for delta in self.deltas)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        return sum(len(delta.token_ids) for delta in self.deltas)


class EntryCodec:
    """Turns answers into sealed bytes and back.

    Args:
        secrets: as `Sealer` has them; the same in all gateways that share a Redis.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self._sealer = Sealer(secrets, "entry")

    def encode(self, key: CacheKey, answer: CachedAnswer) -> bytes:
        """The bytes of an answer, valid under this key alone.

        Raises:
            ValueError: the answer breaks its own types (an id out of range, text that is not Unicode).
        """
        return self.seal(key, json.dumps(columns_of(answer), ensure_ascii=False, separators=(",", ":")).encode())

    def decode(self, key: CacheKey, data: bytes) -> CachedAnswer:
        """The answer in the bytes.

        Raises:
            CorruptEntry: they are not a whole entry of this key; or, as UnknownKey, sealed with a secret that is not here.
        """
        try:
            return answer_from(json.loads(self._sealer.open(key.digest, data)))
        except ValueError as error:
            raise CorruptEntry from error

    def seal(self, key: CacheKey, body: bytes) -> bytes:
        """The encrypted bytes of a body, with what it takes to open them under this key."""
        return self._sealer.seal(key.digest, body)


def columns_of(answer: CachedAnswer) -> list[Any]:
    """What is kept of an answer, for JSON.

    Raises:
        ValueError: the answer breaks its own types.
    """
    texts, ids = [delta.text for delta in answer.deltas], [list(delta.token_ids) for delta in answer.deltas]
    columns = [texts, ids, answer.finish_reason, answer.prompt_tokens, answer.created_at, answer.took_ms]
    answer_from(columns)
    return columns


def answer_from(columns: Any) -> CachedAnswer:
    """The answer in decoded columns; ValueError where anything is off."""
    if not isinstance(columns, list) or len(columns) != 6:
        raise ValueError("an answer has six columns")
    texts, ids, finish_reason, prompt_tokens, created_at, took_ms = columns
    if not (isinstance(texts, list) and isinstance(ids, list) and len(texts) == len(ids)):
        raise ValueError("each delta has text and token ids")
    if not all(isinstance(text, str) for text in texts) or not all(_is_ids(some) for some in ids):
        raise ValueError("a delta is text and a list of token ids")
    if finish_reason not in _FINISH_REASONS:
        raise ValueError("unknown finish reason")
    if not _is_count(prompt_tokens):
        raise ValueError("prompt_tokens is a count")
    if not _is_count(created_at):
        raise ValueError("created_at is a time")
    if not _is_count(took_ms):
        raise ValueError("took_ms is a time")
    deltas = tuple(CachedDelta(text, tuple(some)) for text, some in zip(texts, ids, strict=True))
    return CachedAnswer(deltas=deltas, finish_reason=finish_reason, prompt_tokens=prompt_tokens, created_at=created_at, took_ms=took_ms)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_TOKEN_ID


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))
