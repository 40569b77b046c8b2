"""The lexicon of each language that is written with spaces."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prompt_cache.semantic.parsing.lexicon import Lexicon, build
from prompt_cache.semantic.parsing.tables.chinese import CHINESE_OPPOSITES, CHINESE_PHRASES, CHINESE_SYNONYMS
from prompt_cache.semantic.parsing.tables.english_forms import english_base_forms
from prompt_cache.semantic.parsing.tables.english_phrases import ENGLISH_PHRASES, ENGLISH_REQUESTS, ENGLISH_SEPARABLE
from prompt_cache.semantic.parsing.tables.english_synonyms import ENGLISH_OPPOSITES, ENGLISH_SYNONYMS
from prompt_cache.semantic.parsing.tables.german import (
    GERMAN_OPPOSITES,
    GERMAN_PHRASES,
    GERMAN_REQUESTS,
    GERMAN_SEPARABLE,
    GERMAN_SYNONYMS,
    german_base_forms,
)
from prompt_cache.semantic.parsing.tables.spanish import (
    SPANISH_OPPOSITES,
    SPANISH_PHRASES,
    SPANISH_REQUESTS,
    SPANISH_SYNONYMS,
    spanish_base_forms,
)


def _itself(word: str) -> tuple[str, ...]:
    return (word,)


LEXICONS: Mapping[str, Lexicon] = MappingProxyType(
    {
        "en": build(
            phrases=ENGLISH_PHRASES,
            synonyms=ENGLISH_SYNONYMS,
            opposites=ENGLISH_OPPOSITES,
            base_forms=english_base_forms,
            separable=ENGLISH_SEPARABLE,
            requests=ENGLISH_REQUESTS,
        ),
        "de": build(
            phrases=GERMAN_PHRASES,
            synonyms=GERMAN_SYNONYMS,
            opposites=GERMAN_OPPOSITES,
            base_forms=german_base_forms,
            separable=GERMAN_SEPARABLE,
            requests=GERMAN_REQUESTS,
            names_are_capitalised=False,
        ),
        "es": build(
            phrases=SPANISH_PHRASES,
            synonyms=SPANISH_SYNONYMS,
            opposites=SPANISH_OPPOSITES,
            base_forms=spanish_base_forms,
            requests=SPANISH_REQUESTS,
        ),
        # Its phrases are strings of characters: see chinese.py.
        "zh": build(
            phrases=CHINESE_PHRASES, synonyms=CHINESE_SYNONYMS, opposites=CHINESE_OPPOSITES, base_forms=_itself, names_are_capitalised=False
        ),
    }
)
