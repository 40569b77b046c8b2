"""Turns the strings of sampling parameters, bad words and breakers of repetitions, into token ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from tokenizer_svc.token_texts import TokenTexts
from tokenizer_svc.tokenizer import Tokenizer
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest

_WORDS, _BREAKERS = "bad_words", "dry_sequence_breakers"
_MAX_SHOWN_CHARS = 64
# A word takes as long to encode as so many bytes of a text, however short it is.
_BYTES_PER_WORD = 32


class SamplingStrings(NamedTuple):
    """Strings of one request, checked.

    Attributes:
        bad_words: what the answer cannot have.
        breakers: over what no repetition reaches.
    """

    bad_words: tuple[str, ...]
    breakers: tuple[str, ...]

    @classmethod
    def check(cls, bad_words: Sequence[str], breakers: Sequence[str]) -> SamplingStrings:
        """The strings, if they are within limits.

        Raises:
            InvalidRequest: naming the field and the limit.
        """
        _check(_WORDS, bad_words, limits.MAX_BAD_WORD_STRINGS, limits.MAX_BAD_WORD_CHARS)
        _check(_BREAKERS, breakers, limits.MAX_DRY_BREAKERS, limits.MAX_DRY_BREAKER_CHARS)
        return cls(tuple(bad_words), tuple(dict.fromkeys(breakers)))

    @property
    def num_bytes(self) -> int:
        """The bytes of a text that takes as long to encode as the words."""
        return sum(2 * (len(word.encode()) + _BYTES_PER_WORD) for word in self.bad_words)


class SamplingIds(NamedTuple):
    """What strings come to."""

    bad_words: list[list[int]]
    breaker_ids: Sequence[int]


class SamplingStringEncoder:
    """Encodes them with one tokenizer; threads may share it.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)

    def kept_breaker_ids(self, strings: SamplingStrings) -> array[int] | None:
        """Ids of the breakers where no search is needed; takes no time."""
        return self._texts.kept_ids_with(strings.breakers) if strings.breakers else array("I")

    def encode(self, strings: SamplingStrings, breaker_ids: array[int] | None) -> SamplingIds:
        """The ids.

        Args:
            strings: of a request.
            breaker_ids: from `kept_breaker_ids`.

        Raises:
            InvalidRequest: a word comes to no tokens, to unknown or to too many; breakers are in too many. Names it.
        """
        bad_words = self._bad_words(strings.bad_words) if strings.bad_words else []
        return SamplingIds(bad_words, self._texts.ids_with(strings.breakers) if breaker_ids is None else breaker_ids)

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Each word as it begins a text and as it follows another: most vocabularies have the space in the token behind it."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            bare = word.lstrip(" ") or word
            for form in (bare, f" {bare}"):
                ids = self._token_ids(form)
                if ids is None:
                    raise InvalidRequest(f"{_WORDS} has {_shown(word)}, for which the vocabulary has no tokens", field=_WORDS)
                if len(ids) > limits.MAX_BAD_WORD_TOKENS:
                    raise InvalidRequest(
                        f"{_WORDS} has {_shown(word)}, which is {len(ids)} tokens, the limit is {limits.MAX_BAD_WORD_TOKENS}", field=_WORDS
                    )
                found[tuple(ids)] = None
        return [list(ids) for ids in found]

    def _token_ids(self, text: str) -> list[int] | None:
        """The ids of a text; None if the vocabulary cannot spell it, or has nothing for it."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=False, field=_WORDS)
        except InvalidRequest:
            return None
        return ids if ids and self._tokenizer.unknown_id not in ids else None


def _check(field: str, strings: Sequence[str], most: int, most_chars: int) -> None:
    if len(strings) > most:
        raise InvalidRequest(f"{field} has {len(strings)} strings, the limit is {most}", field=field)
    for string in strings:
        if not 1 <= len(string) <= most_chars:
            raise InvalidRequest(f"{field} has a string of {len(string)} characters, the limits are 1 and {most_chars}", field=field)


def _shown(word: str) -> str:
    return repr(word if len(word) <= _MAX_SHOWN_CHARS else f"{word[:_MAX_SHOWN_CHARS]}...")
