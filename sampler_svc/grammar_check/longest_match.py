"""Tokens of a text, the longest that fits first."""

from __future__ import annotations

from collections.abc import Sequence


class LongestMatch:
    """Writes texts in tokens.

    Args:
        tokens: what each id is written as.
    """

    def __init__(self, tokens: Sequence[bytes]) -> None:
        # Of ids that are written alike the lowest.
        self._ids = {text: token for token, text in reversed(list(enumerate(tokens))) if text}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """The ids; they end early where nothing fits."""
        ids, place = [], 0
        while place < len(text):
            lengths = range(min(self._longest, len(text) - place), 0, -1)
            length = next((length for length in lengths if text[place : place + length] in self._ids), None)
            if length is None:
                break
            ids.append(self._ids[text[place : place + length]])
            place += length
        return ids
