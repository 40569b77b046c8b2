"""A kept answer and its encrypted bytes."""

from __future__ import annotations

import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from prompt_cache.keys import CacheKey, derive_secret

FinishReason = Literal["stop", "length"]

_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length")
_LAYOUT = b"\x02"
_NONCE_BYTES = 12
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
    # Tokens of the prompt, for the usage report.
    prompt_tokens: int


class EntryCodec:
    """Turns answers into encrypted bytes and back.

    AES-256-GCM, with a key of each entry's own that is derived from the secret and the entry's name: who can read Redis and lacks the
    secret learns no answer, and an entry that was damaged, moved to another name or written by somebody else does not open.

    Args:
        secret: the same in all gateways that share a Redis.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = derive_secret(secret, "entry")

    def encode(self, key: CacheKey, answer: CachedAnswer) -> bytes:
        """The bytes of an answer, valid under this key alone.

        Raises:
            ValueError: the answer breaks its own types (an id out of range, text that is not Unicode).
        """
        columns = (
            [delta.text for delta in answer.deltas],
            [list(delta.token_ids) for delta in answer.deltas],
            answer.finish_reason,
            answer.prompt_tokens,
        )
        _answer_from(list(columns))
        return self.seal(key, json.dumps(columns, ensure_ascii=False, separators=(",", ":")).encode())

    def decode(self, key: CacheKey, data: bytes) -> CachedAnswer:
        """The answer in the bytes.

        Raises:
            CorruptEntry: they are not a whole entry of this key.
        """
        start = len(_LAYOUT) + _NONCE_BYTES
        if data[: len(_LAYOUT)] != _LAYOUT or len(data) < start:
            raise CorruptEntry
        try:
            body = self._cipher(key).decrypt(data[len(_LAYOUT) : start], data[start:], _LAYOUT)
            return _answer_from(json.loads(body))
        except (InvalidTag, ValueError) as error:
            raise CorruptEntry from error

    def seal(self, key: CacheKey, body: bytes) -> bytes:
        """The encrypted bytes of a body, with what it takes to open them under this key."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _LAYOUT + nonce + self._cipher(key).encrypt(nonce, body, _LAYOUT)

    def _cipher(self, key: CacheKey) -> AESGCM:
        # One key for all entries would allow no more than 2**32 of them.
        return AESGCM(hmac.digest(self._secret, bytes.fromhex(key.digest), "sha256"))


def _answer_from(columns: Any) -> CachedAnswer:
    """The answer in decoded columns; ValueError where anything is off."""
    if not isinstance(columns, list) or len(columns) != 4:
        raise ValueError("an answer has four columns")
    texts, ids, finish_reason, prompt_tokens = columns
    if not (isinstance(texts, list) and isinstance(ids, list) and len(texts) == len(ids)):
        raise ValueError("each delta has text and token ids")
    if not all(isinstance(text, str) for text in texts) or not all(_is_ids(some) for some in ids):
        raise ValueError("a delta is text and a list of token ids")
    if finish_reason not in _FINISH_REASONS:
        raise ValueError("unknown finish reason")
    if not _is_count(prompt_tokens):
        raise ValueError("prompt_tokens is a count")
    deltas = tuple(CachedDelta(text, tuple(some)) for text, some in zip(texts, ids, strict=True))
    return CachedAnswer(deltas=deltas, finish_reason=finish_reason, prompt_tokens=prompt_tokens)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_TOKEN_ID


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))
