"""Who is asking: API keys, kept as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from triserve.rpc import limits
from triserve.rpc.errors import Unauthenticated
from triserve.rpc.reread import Reread

DEFAULT_TENANT = "default"
_LINE = re.compile(
    r"(?P<tenant>[A-Za-z0-9_.-]{1,64})\s+(?P<digest>[0-9a-f]{64})(\s+lowest_priority=(?P<lowest>-?[0-9]{1,4}))?(?P<metrics>\s+metrics)?"
    r"(?P<similarity>\s+similarity)?"
)


class BadKeysFile(Exception):
    """A file of API keys that cannot be read; names the line, not its content."""


class Grant(NamedTuple):
    """Who a client is and what it may ask for."""

    tenant: str
    # Lower is sooner; below 0 only where the operator says so, since nobody is to pass all others by asking for it.
    lowest_priority: int = 0
    # Whether it may read /metrics, which tell of all tenants together.
    reads_metrics: bool = False
    # Whether it is told how near a question was whose answer it gets: who may ask as often as he likes could find others' questions by it.
    sees_similarity: bool = False


@dataclass(frozen=True)
class ApiKeys:
    """The keys that are let in.

    Args:
        grants: sha256 of a key, 32 bytes, to what it grants. Empty = no key is asked for; then nobody is known well enough to pass the
            others, and every client can be no sooner than normal.
    """

    grants: dict[bytes, Grant]

    @classmethod
    def load(cls, path: Path | None) -> ApiKeys:
        """Reads lines of `tenant sha256-in-hex`, each with `lowest_priority=N` after it where the key may ask for a priority below 0, and
        then `metrics` where it may read /metrics, and `similarity` where it is told how near a question was whose answer it gets.

        Empty lines and those that begin with # are passed over.

        Args:
            path: of the file; None = no key is asked for.

        Raises:
            BadKeysFile: the file cannot be read, a line is malformed, its lowest_priority is out of range, a key is there twice, or there is no key at all.
        """
        if path is None:
            return cls({})
        try:
            text = path.read_text()
        except OSError as error:
            raise BadKeysFile(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeError:
            raise BadKeysFile(f"{path} is not UTF-8") from None
        grants: dict[bytes, Grant] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise BadKeysFile(
                    f"{path} line {number} is not a tenant and the lower-case hex sha256 of a key, with or without lowest_priority=N, metrics and"
                    " similarity"
                )
            digest = bytes.fromhex(match["digest"])
            if digest in grants:
                raise BadKeysFile(f"{path} line {number} has a key that is there already")
            lowest = int(match["lowest"] or 0)
            if not limits.PRIORITY.low <= lowest <= 0:
                raise BadKeysFile(f"{path} line {number} has lowest_priority={lowest}, the range is [{limits.PRIORITY.low:g}, 0]")
            grants[digest] = Grant(
                match["tenant"], lowest, reads_metrics=match["metrics"] is not None, sees_similarity=match["similarity"] is not None
            )
        if not grants:
            raise BadKeysFile(f"{path} has no key; without the setting no key is asked for")
        return cls(grants)

    @property
    def num_tenants(self) -> int:
        """Who may come: the tenants of all keys, or everybody as one."""
        return len({grant.tenant for grant in self.grants.values()}) or 1

    def grant_of(self, authorization: str | None) -> Grant:
        """What a client's key grants.

        Args:
            authorization: value of the header or metadata key of that name; None = there is none.

        Raises:
            Unauthenticated: there is no key, or it is none of ours.
        """
        if not self.grants:
            return Grant(DEFAULT_TENANT, reads_metrics=True, sees_similarity=True)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthenticated("an API key is needed: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`", field="Authorization")
        presented = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        found = None
        # All are compared, so that the time tells nothing about which are close.
        for digest, grant in self.grants.items():
            if hmac.compare_digest(digest, presented):
                found = grant
        if found is None:
            raise Unauthenticated("the API key is not known", field="Authorization")
        return found


class LiveKeys:
    """The keys that are in the file now. It is looked at with every request: a key that is taken out is refused from then on, and what was asked
    with it before is answered to its end. A file that cannot be read, or has a wrong line, changes nothing.

    Args:
        path: of the file; None = no key is asked for.
        on_change: called when other keys have come.

    Raises:
        BadKeysFile: see `ApiKeys.load`; at the start alone.
    """

    def __init__(self, path: Path | None, *, on_change: Callable[[ApiKeys], None]) -> None:
        self._read = Reread(() if path is None else (path,), lambda: ApiKeys.load(path), refused=BadKeysFile)
        self._keys = self._read.current()
        self._on_change = on_change

    def current(self) -> ApiKeys:
        """Those that are let in."""
        keys = self._read.current()
        if keys is not self._keys:
            self._keys = keys
            self._on_change(keys)
        return keys

    def grant_of(self, authorization: str | None) -> Grant:
        """See `ApiKeys.grant_of`."""
        return self.current().grant_of(authorization)
