"""What each token says, searched for strings: the vocabulary's texts are made once, when somebody first asks."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from itertools import accumulate

from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest

# Between texts: no UTF-8 has it, so that nothing is found across two of them.
_BORDER = b"\xff"
_MAX_KEPT_ANSWERS = 64
_MAX_SHOWN_CHARS = 64


class TokenTexts:
    """The texts of a vocabulary; threads may share it.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._making = threading.Lock()
        self._texts: _Joined | None = None
        self._keeping = threading.Lock()
        # Least recently used first.
        self._kept: OrderedDict[tuple[str, ...], array[int]] = OrderedDict()

    def kept_ids_with(self, breakers: tuple[str, ...]) -> array[int] | None:
        """What `ids_with` gives, if it was asked lately; takes no time."""
        with self._keeping:
            ids = self._kept.get(breakers)
            if ids is not None:
                self._kept.move_to_end(breakers)
            return ids

    def ids_with(self, breakers: tuple[str, ...]) -> array[int]:
        """Ids of all tokens in whose text one of the strings is, rising. The first call takes seconds per million tokens.

        Args:
            breakers: each of at least one character.

        Raises:
            InvalidRequest: they are too many; names the breaker with which they are.
        """
        with self._making:
            texts = self._texts = self._texts or _Joined(self._tokenizer.token_texts())
        found: set[int] = set()
        for breaker in breakers:
            texts.find(breaker.encode(), found, most=limits.MAX_LISTED_TOKEN_IDS)
            if len(found) > limits.MAX_LISTED_TOKEN_IDS:
                raise InvalidRequest(
                    f"dry_sequence_breakers has {breaker[:_MAX_SHOWN_CHARS]!r}, with which they are in more than "
                    f"{limits.MAX_LISTED_TOKEN_IDS} tokens, the limit",
                    field="dry_sequence_breakers",
                )
        ids = array("I", sorted(found))
        with self._keeping:
            self._kept[breakers] = ids
            if len(self._kept) > _MAX_KEPT_ANSWERS:
                self._kept.popitem(last=False)
        return ids


class _Joined:
    """Texts one after the other, where a string is found at the speed of memory.

    Args:
        texts: by their ids.
    """

    def __init__(self, texts: Mapping[int, str]) -> None:
        parts = [text.encode() for text in texts.values()]
        self._ids = array("I", texts)
        self._bytes = _BORDER.join(parts)
        # Where each text starts, and where one behind the last would.
        self._starts = array("I", accumulate((len(part) + len(_BORDER) for part in parts), initial=0))

    def find(self, string: bytes, found: set[int], *, most: int) -> None:
        """Adds the ids of texts with the string to `found`, until they are more than `most`."""
        place = self._bytes.find(string)
        while place >= 0 and len(found) <= most:
            index = bisect_right(self._starts, place) - 1
            found.add(self._ids[index])
            place = self._bytes.find(string, self._starts[index + 1])
