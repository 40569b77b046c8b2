"""The names of cached pages in `WatchKvEventsResponse`: a hash of a page's tokens and of all before them."""

from __future__ import annotations

from hashlib import blake2b

_BYTES_PER_ID = 4
_BYTES_PER_HASH = 8


def tenant_hash(tenant: str) -> int:
    """What comes before the first page of a tenant."""
    return int.from_bytes(blake2b(tenant.encode(), digest_size=_BYTES_PER_HASH, person=b"triserve.tenant").digest(), "little")


def page_hashes(before: int, token_ids: bytes, page_size_tokens: int) -> list[int]:
    """The hashes of pages that follow each other.

    Args:
        before: Of the page before the first one, or of the tenant.
        token_ids: Little-endian uint32, whole pages.
        page_size_tokens: Tokens of one page.
    """
    size = page_size_tokens * _BYTES_PER_ID
    assert len(token_ids) % size == 0, "whole pages have a hash"
    hashes = []
    digest = before.to_bytes(_BYTES_PER_HASH, "little")
    for start in range(0, len(token_ids), size):
        digest = blake2b(digest + token_ids[start : start + size], digest_size=_BYTES_PER_HASH).digest()
        hashes.append(int.from_bytes(digest, "little"))
    return hashes
