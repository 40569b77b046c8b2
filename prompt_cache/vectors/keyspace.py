"""Names of the keys that hold a scope's entries."""

from __future__ import annotations

import re
from typing import NamedTuple

from prompt_cache.keys import SCHEMA_VERSION

PREFIX = f"triserve:cache:{SCHEMA_VERSION}:"

_SCOPE = re.compile(r"[0-9a-f]{1,128}")
# Nothing that a script's own names of counters begin with ("#"), and nothing that would need escaping anywhere.
_ENTRY_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")


class ScopeKeys(NamedTuple):
    """The keys of one scope. All have the scope as their hash tag: in a cluster they lie on one node, and one script may use them all."""

    # Sorted sets: who is evicted first; when each expires (ms since 1970). A hash: a record of each, and counters.
    priorities: str
    expiries: str
    records: str
    # What the back end finds entries by: a vector set, or the order of changes; and what was removed lately.
    vectors: str
    gone: str
    # What the name of every entry begins with.
    entries: str

    @property
    def declared(self) -> tuple[str, ...]:
        """What a script says it uses. Entries' names it makes itself: they are on the same node."""
        return self[:5]


class Keyspace:
    """The keys of one back end. Back ends share none: each would find the other's entries half there.

    Args:
        family: names the back end; part of every key.
    """

    def __init__(self, family: str) -> None:
        self._base = f"{PREFIX}{family}:"
        # What the names of all entries of all scopes begin with, and of no other key.
        self.entries = f"{self._base}e:"

    def scope(self, scope: str) -> ScopeKeys:
        """The keys of a scope.

        Raises:
            ValueError: it is not lower-case hex.
        """
        tag = f"{{{checked_scope(scope)}}}:"
        base = self._base + tag
        return ScopeKeys(f"{base}p", f"{base}x", f"{base}r", f"{base}v", f"{base}g", self.entries + tag)


def checked_scope(scope: str) -> str:
    """The scope.

    Raises:
        ValueError: it is not lower-case hex.
    """
    if not _SCOPE.fullmatch(scope):
        raise ValueError(f"scope is {scope!r}, must be 1 to 128 lower-case hex digits")
    return scope


def checked_id(entry_id: str) -> str:
    """The id of an entry.

    Raises:
        ValueError: it has other characters than letters, digits, "_" and "-", or more than 128.
    """
    if not _ENTRY_ID.fullmatch(entry_id):
        raise ValueError(f"entry id is {entry_id!r}, must be 1 to 128 of letters, digits, '_' and '-'")
    return entry_id
