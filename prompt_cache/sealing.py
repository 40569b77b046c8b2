"""Encrypts what is kept, so that who can read Redis and lacks the secret learns nothing, and what was changed or moved does not open."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from prompt_cache.keys import derive_secret

LAYOUT = b"\x03"
_KEY_ID_BYTES = 4
_NONCE_BYTES = 12


class CorruptEntry(Exception):
    """Bytes that are no value of this name: damaged, of another layout, or written by someone without the secret."""


class UnknownKey(CorruptEntry):
    """Sealed with a secret that this process does not have: an older one that it has no more, or a newer one."""


class Sealer:
    """AES-256-GCM, with a key for each name that is derived from the secret and the name.

    A value carries the id of its secret. The first secret seals; all of them open, so that secrets can be changed while values live.

    Args:
        all_secrets: at least one.
        purpose: values sealed for one purpose do not open for another.
    """

    def __init__(self, all_secrets: Sequence[bytes], purpose: str) -> None:
        self._secrets = {
            derive_secret(secret, "key id")[:_KEY_ID_BYTES]: derive_secret(secret, purpose) for secret in reversed(all_secrets)
        }
        self._first = derive_secret(all_secrets[0], "key id")[:_KEY_ID_BYTES]

    def seal(self, name: str, body: bytes) -> bytes:
        """The encrypted bytes of a body, with what it takes to open them under this name."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        header = LAYOUT + self._first
        return header + nonce + _cipher(self._secrets[self._first], name).encrypt(nonce, body, header)

    def open(self, name: str, data: bytes) -> bytes:
        """The body.

        Raises:
            UnknownKey: it was sealed with a secret that is not here.
            CorruptEntry: the bytes are no whole value of this name.
        """
        nonce_at = len(LAYOUT) + _KEY_ID_BYTES
        body_at = nonce_at + _NONCE_BYTES
        if data[: len(LAYOUT)] != LAYOUT or len(data) < body_at:
            raise CorruptEntry
        secret = self._secrets.get(data[len(LAYOUT) : nonce_at])
        if secret is None:
            raise UnknownKey
        try:
            return _cipher(secret, name).decrypt(data[nonce_at:body_at], data[body_at:], data[:nonce_at])
        except InvalidTag as error:
            raise CorruptEntry from error


def _cipher(secret: bytes, name: str) -> AESGCM:
    # One key for all values would allow no more than 2**32 of them.
    return AESGCM(hmac.digest(secret, name.encode(), "sha256"))
