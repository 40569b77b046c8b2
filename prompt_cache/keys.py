"""Names of entries: keyed hashes of everything an answer depends on, so that different questions never share one."""

from __future__ import annotations

import hmac
import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

# Part of every key: entries of another layout are never found, and expire.
SCHEMA_VERSION = 3

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
    # What the client gave to keep its answers apart; empty = nothing.
    salt: str = ""
    # Of the tenant's entries; a purge raises it.
    generation: int = 0


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


@dataclass(frozen=True, kw_only=True)
class SemanticScope:
    """Within what the answer to one question may serve another. Every field is part of the scope's name; all of them are compared exactly.

    What is left out is what the last user turn says, and most_tokens and the seed, which are looked at where an answer is found.
    """

    # As in `CacheScope`.
    tenant: str
    model: str
    weights_revision: str
    computation: str
    tokenizer_sha256: str
    # Canonical bytes of every resolved parameter that bears on the answer, but for the seed and the most tokens.
    sampling: bytes
    # Canonical bytes of the whole chat and the template's arguments, without the content of its last turn.
    context: bytes
    # Of the embedder; vectors of two are not comparable.
    embedder: str
    # What the client gave to keep its answers apart; empty = nothing.
    salt: str
    # Of the tenant's entries; a purge raises it.
    generation: int


class KeyMaker:
    """Makes keys that nobody can guess without the secret.

    Args:
        secret: the same in all gateways that share a Redis.
    """

    def __init__(self, secret: bytes) -> None:
        self._namespace_secret = derive_secret(secret, "namespace")
        self._key_secret = derive_secret(secret, "key")
        self._scope_secret = derive_secret(secret, "scope")

    def namespace(self, tenant: str) -> str:
        """Of all that a tenant has, hex."""
        return hmac.digest(self._namespace_secret, _as_bytes(tenant), "sha256").hex()[:_NAMESPACE_HEX]

    def scope(self, scope: SemanticScope) -> str:
        """The name of a scope, hex: the tenant's namespace and a hash of everything."""
        parts = [_as_bytes(getattr(scope, item.name)) for item in fields(scope)]
        return self.namespace(scope.tenant) + hmac.digest(self._scope_secret, _joined(parts), "sha256").hex()

    def key(self, scope: CacheScope, prompt_token_ids: Sequence[int]) -> CacheKey:
        """The key of a question.

        Args:
            scope: all that the answer depends on besides the prompt.
            prompt_token_ids: each in [0, 2**32).

        Raises:
            OverflowError: an id is out of range.
        """
        parts = [_as_bytes(getattr(scope, item.name)) for item in fields(scope)]
        parts.append(_packed(prompt_token_ids))
        return CacheKey(self.namespace(scope.tenant), hmac.digest(self._key_secret, _joined(parts), "sha256").hex())


def derive_secret(secret: bytes, purpose: str) -> bytes:
    """A secret of its own for one purpose, so that hashes made for one are no use for another."""
    return hmac.digest(secret, f"triserve prompt cache {SCHEMA_VERSION} {purpose}".encode(), "sha256")


def _as_bytes(value: str | bytes | int) -> bytes:
    if isinstance(value, int):
        return str(value).encode()
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
