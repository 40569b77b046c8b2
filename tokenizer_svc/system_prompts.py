"""Remembers what chats with the same system prompt begin with, within bounds of count and bytes."""

from __future__ import annotations

import hashlib
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple


class SystemPrompt(NamedTuple):
    """What every chat with one system prompt begins with.

    Attributes:
        text_len: characters up to the end of the system prompt's own words.
        text_sha256: of those characters.
        token_ids: uint32, of the whole common beginning.
    """

    text_len: int
    text_sha256: bytes
    token_ids: array[int]

    @classmethod
    def none(cls) -> SystemPrompt:
        """For a template that does not put the system prompt first."""
        return cls(0, b"", array("I"))

    @classmethod
    def of(cls, text: str, token_ids: array[int]) -> SystemPrompt:
        """From the text up to the end of the system prompt's words."""
        return cls(len(text), _sha256(text), token_ids)

    def common_tokens(self, text: str, token_ids: Sequence[int]) -> int:
        """How many of a chat's first ids are the system prompt's.

        Args:
            text: the whole chat as it was encoded.
            token_ids: its ids.

        Returns:
            Length of the common beginning; 0 if the chat does not begin with the system prompt's words.
        """
        if not self.token_ids or _sha256(text[: self.text_len]) != self.text_sha256:
            return 0
        return common_len(self.token_ids, array("I", token_ids[: len(self.token_ids)]))


def common_len(left: array[int] | str, right: array[int] | str) -> int:
    """Length of the common beginning of two of a kind, by comparing a few long slices and not many items."""
    return bisect_left(range(min(len(left), len(right))), True, key=lambda last: left[: last + 1] != right[: last + 1])


class SystemPrompts:
    """The most recently used system prompts; threads may share it.

    Args:
        max_entries: most prompts.
        max_bytes: most bytes of their ids together.
    """

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._prompts: OrderedDict[bytes, SystemPrompt] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> SystemPrompt | None:
        """The prompt put under the key, unless it had to make room."""
        with self._lock:
            if key in self._prompts:
                self._prompts.move_to_end(key)
            return self._prompts.get(key)

    def put(self, key: bytes, prompt: SystemPrompt) -> None:
        """Remembers a prompt and forgets those used longest ago that no longer fit."""
        with self._lock:
            self._forget(key)
            self._prompts[key] = prompt
            self._num_bytes += _size(prompt)
            while len(self._prompts) > self._max_entries or self._num_bytes > self._max_bytes:
                self._forget(next(iter(self._prompts)))

    @property
    def num_bytes(self) -> int:
        """Bytes of all the ids remembered."""
        return self._num_bytes

    def __len__(self) -> int:
        return len(self._prompts)

    def _forget(self, key: bytes) -> None:
        prompt = self._prompts.pop(key, None)
        if prompt is not None:
            self._num_bytes -= _size(prompt)


def _size(prompt: SystemPrompt) -> int:
    return len(prompt.token_ids) * prompt.token_ids.itemsize


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
