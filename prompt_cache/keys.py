"""Names of entries: keyed hashes of everything an answer depends on, so that different questions never share one."""

from __future__ import annotations

import hmac
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

# Part of every key: entries of another layout are never found, and expire.
SCHEMA_VERSION = 2

_NAMESPACE_HEX = 16


@dataclass(frozen=True, kw_only=True)
class CacheScope:
    """What an answer depends on besides the prompt's token ids. Every field is part of the key.

    The system prompt and the earlier turns are in the token ids.
    """

    # Whose answers these are; tenants never share.
    tenant: str
    # The name under which the model is served.
    model: str
    # Revision of the weights, how logits are computed from them, and sha256 of the tokenizer.
    weights_revision: str
    computation: str
    tokenizer_sha256: str
    # Canonical bytes of every resolved parameter that bears on the answer: sampling, stopping, what is reported with it.
    sampling: bytes


class CacheKey(NamedTuple):
    """Name of one entry."""

    # Keyed hash of the tenant, hex: one prefix in Redis for all that a tenant has.
    namespace: str
    # Keyed hash of scope and prompt, hex.
    digest: str

    @property
    def redis_name(self) -> str:
        """The key in Redis."""
        return f"triserve:cache:{SCHEMA_VERSION}:{self.namespace}:x:{self.digest}"


class KeyMaker:
    """Makes keys that nobody can guess without the secret.

    Args:
        secret: the same in all gateways that share a Redis.
    """

    def __init__(self, secret: bytes) -> None:
        self._namespace_secret = derive_secret(secret, "namespace")
        self._key_secret = derive_secret(secret, "key")

    def key(self, scope: CacheScope, prompt_token_ids: Sequence[int]) -> CacheKey:
        """The key of a question.

        Args:
            scope: all that the answer depends on besides the prompt.
            prompt_token_ids: each in [0, 2**32).

        Raises:
            OverflowError: an id is out of range.
        """
        namespace = hmac.digest(self._namespace_secret, _as_bytes(scope.tenant), "sha256").hex()[:_NAMESPACE_HEX]
        parts = [_as_bytes(getattr(scope, item.name)) for item in fields(scope)]
        parts.append(_packed(prompt_token_ids))
        return CacheKey(namespace, hmac.digest(self._key_secret, _joined(parts), "sha256").hex())


def derive_secret(secret: bytes, purpose: str) -> bytes:
    """A secret of its own for one purpose, so that hashes made for one are no use for another."""
    return hmac.digest(secret, f"triserve prompt cache {SCHEMA_VERSION} {purpose}".encode(), "sha256")


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")


def _joined(parts: Iterable[bytes]) -> bytes:
    """The parts with their lengths before them: no two lists of parts give the same bytes."""
    return b"".join(piece for part in parts for piece in (len(part).to_bytes(8, "little"), part))


def _packed(token_ids: Sequence[int]) -> bytes:
    packed = array("I", token_ids)
    assert packed.itemsize == 4, "an unsigned int has four bytes on every platform Python runs on"
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
