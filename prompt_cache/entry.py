"""A kept answer and its sealed bytes."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from prompt_cache.keys import CacheKey, derive_secret

FinishReason = Literal["stop", "length"]

_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length")
_LAYOUT = b"\x01"
_SEAL_BYTES = 16
_MAX_TOKEN_ID = 2**32 - 1


class CorruptEntry(Exception):
    """Bytes that are no entry of this key: damaged, of another layout, or written by someone without the secret."""


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
    # The stop string that ended the answer; None if something else did.
    stop_string: str | None = None
    # Tokens of the prompt, for the usage report.
    prompt_tokens: int


class EntryCodec:
    """Turns answers into sealed bytes and back.

    The seal is a keyed hash over the key and the answer: an entry that was damaged, moved to another key or written by someone
    who can write to Redis but lacks the secret does not open.

    Args:
        secret: the same in all gateways that share a Redis.
    """

    def __init__(self, secret: bytes) -> None:
        self._seal_secret = derive_secret(secret, "seal")

    def encode(self, key: CacheKey, answer: CachedAnswer) -> bytes:
        """The bytes of an answer, valid under this key alone.

        Raises:
            ValueError: the answer breaks its own types (an id out of range, text that is not Unicode).
        """
        columns = (
            [delta.text for delta in answer.deltas],
            [list(delta.token_ids) for delta in answer.deltas],
            answer.finish_reason,
            answer.stop_string,
            answer.prompt_tokens,
        )
        _answer_from(list(columns))
        body = json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode()
        return _LAYOUT + self._seal(key, body) + body

    def decode(self, key: CacheKey, data: bytes) -> CachedAnswer:
        """The answer in the bytes.

        Raises:
            CorruptEntry: they are not a whole entry of this key.
        """
        start = len(_LAYOUT) + _SEAL_BYTES
        layout, seal, body = data[: len(_LAYOUT)], data[len(_LAYOUT) : start], data[start:]
        if layout != _LAYOUT or not hmac.compare_digest(seal, self._seal(key, body)):
            raise CorruptEntry
        try:
            return _answer_from(json.loads(body))
        except ValueError as error:
            raise CorruptEntry from error

    def _seal(self, key: CacheKey, body: bytes) -> bytes:
        return hmac.digest(self._seal_secret, bytes.fromhex(key.digest) + body, "sha256")[:_SEAL_BYTES]


def _answer_from(columns: Any) -> CachedAnswer:
    """The answer in decoded columns; ValueError where anything is off."""
    if not isinstance(columns, list) or len(columns) != 5:
        raise ValueError("an answer has five columns")
    texts, ids, finish_reason, stop_string, prompt_tokens = columns
    if not (isinstance(texts, list) and isinstance(ids, list) and len(texts) == len(ids)):
        raise ValueError("each delta has text and token ids")
    if not all(isinstance(text, str) for text in texts) or not all(_is_ids(some) for some in ids):
        raise ValueError("a delta is text and a list of token ids")
    if finish_reason not in _FINISH_REASONS:
        raise ValueError("unknown finish reason")
    if not (stop_string is None or isinstance(stop_string, str)):
        raise ValueError("a stop string is text")
    if not _is_count(prompt_tokens):
        raise ValueError("prompt_tokens is a count")
    deltas = tuple(CachedDelta(text, tuple(some)) for text, some in zip(texts, ids, strict=True))
    return CachedAnswer(deltas=deltas, finish_reason=finish_reason, stop_string=stop_string, prompt_tokens=prompt_tokens)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_TOKEN_ID


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))
