"""What is computed together, padded to the longest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def bucketed(lengths: Sequence[int], max_padding: int, max_size: int) -> Iterator[list[int]]:
    """Members of similar length together: cut where padding to the longest, or all of a bucket, would be too much.

    Args:
        lengths: Of each member, at least one member.
        max_padding: Most that padding adds to a bucket.
        max_size: Most of a bucket, its longest member times its number of members; one member alone may have more.

    Yields:
        Members, ascending; each is in one bucket.
    """
    bucket: list[int] = []
    longest = padding = 0
    for member in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = lengths[member]
        padding += len(bucket) * (length - longest)
        if bucket and (padding > max_padding or (len(bucket) + 1) * length > max_size):
            yield sorted(bucket)
            bucket, padding = [], 0
        bucket.append(member)
        longest = length
    yield sorted(bucket)
