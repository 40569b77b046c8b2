"""Typing errors that cannot be another word: two letters exchanged, one not doubled, one left out of a long word."""

from __future__ import annotations

from prompt_cache.semantic.parsing.lexicon import Lexicon
from prompt_cache.semantic.parsing.tables.english_phrases import ENGLISH_CONFUSABLE

_MIN_LETTERS = 4
# Shorter words with a letter less are often words: county, country.
_MIN_LETTERS_OMITTED = 8
_INFLECTIONS = ("ing", "ings", "ed", "er", "ers")


def is_misspelt(one: str, other: str, lexicon: Lexicon) -> bool:
    """Whether one word is the other with a slip of the finger.

    Two words that are both known are never each other's misspelling, and words that are known to be confused are not either. A letter
    replaced or put in is not forgiven: it makes other words (nitrate, nitrite; country, county).
    """
    if not (one.isalpha() and other.isalpha()):
        return False
    if min(len(one), len(other)) < _MIN_LETTERS or one[0] != other[0] or {one, other} & ENGLISH_CONFUSABLE:
        return False
    if lexicon.is_known(one) and lexicon.is_known(other):
        return False
    return (
        _is_omission(one, other, lexicon)
        or _is_omission(other, one, lexicon)
        or _is_exchange(one, other)
        or _is_doubling(one, other)
        or _is_doubling(other, one)
    )


def _is_omission(longer: str, shorter: str, lexicon: Lexicon) -> bool:
    """Whether a letter is left out inside a long word of the tables; not where endings make other words: starting, staring."""
    if len(longer) != len(shorter) + 1 or len(longer) < _MIN_LETTERS_OMITTED or longer.endswith(_INFLECTIONS):
        return False
    if longer not in lexicon.known and longer.removesuffix("s") not in lexicon.known:
        return False
    place = next((place for place, char in enumerate(shorter) if longer[place] != char), len(shorter))
    return 2 <= place < len(longer) - 2 and longer[place + 1 :] == shorter[place:]


def _is_exchange(one: str, other: str) -> bool:
    if len(one) != len(other):
        return False
    places = [place for place in range(len(one)) if one[place] != other[place]]
    if len(places) != 2 or places[1] != places[0] + 1:
        return False
    left, right = places
    return one[left] == other[right] and one[right] == other[left]


def _is_doubling(longer: str, shorter: str) -> bool:
    """Whether the shorter lacks one of two equal letters in a row."""
    if len(longer) != len(shorter) + 1:
        return False
    place = next((place for place, char in enumerate(shorter) if longer[place] != char), len(shorter))
    return longer[:place] + longer[place + 1 :] == shorter and longer[place] == longer[place - 1]
