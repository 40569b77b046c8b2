"""Who is asking: API keys, kept as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from triserve.rpc.errors import Unauthenticated

DEFAULT_TENANT = "default"
_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9_.-]{1,64})\s+(?P<digest>[0-9a-f]{64})")


class BadKeysFile(Exception):
    """A file of API keys that cannot be read; names the line, not its content."""


@dataclass(frozen=True)
class ApiKeys:
    """The keys that are let in.

    Args:
        tenants: sha256 of a key, 32 bytes, to whose key it is. Empty = no key is asked for.
    """

    tenants: dict[bytes, str]

    @classmethod
    def load(cls, path: Path | None) -> ApiKeys:
        """Reads lines of `tenant sha256-in-hex`; empty lines and those that begin with # are passed over.

        Args:
            path: of the file; None = no key is asked for.

        Raises:
            BadKeysFile: a line is malformed or a key is there twice, or there is no key at all.
        """
        if path is None:
            return cls({})
        tenants: dict[bytes, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise BadKeysFile(f"{path} line {number} is not a tenant and the lower-case hex sha256 of a key")
            digest = bytes.fromhex(match["digest"])
            if digest in tenants:
                raise BadKeysFile(f"{path} line {number} has a key that is there already")
            tenants[digest] = match["tenant"]
        if not tenants:
            raise BadKeysFile(f"{path} has no key; without the setting no key is asked for")
        return cls(tenants)

    def tenant_of(self, authorization: str | None) -> str:
        """Whose key it is.

        Args:
            authorization: value of the header or metadata key of that name; None = there is none.

        Raises:
            Unauthenticated: there is no key, or it is none of ours.
        """
        if not self.tenants:
            return DEFAULT_TENANT
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("an API key is needed: send it as `Authorization: Bearer KEY`", field="Authorization")
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        # All are compared, so that the time tells nothing about which are close.
        for digest, tenant in self.tenants.items():
            if hmac.compare_digest(digest, presented):
                found = tenant
        if found is None:
            raise Unauthenticated("the API key is not known", field="Authorization")
        return found
