"""The tables do not contradict themselves."""

from __future__ import annotations

import pytest

from prompt_cache.semantic.parsing.lexicon import Lexicon
from prompt_cache.semantic.parsing.quantities import han_value
from prompt_cache.semantic.parsing.tables.english_forms import english_base_forms
from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS


@pytest.mark.parametrize("lexicon", LEXICONS.values(), ids=LEXICONS)
def test_no_word_is_a_synonym_of_its_opposite(lexicon: Lexicon) -> None:
    both = [
        (word, contrary)
        for word, contraries in lexicon.opposites.items()
        for contrary in contraries
        if lexicon.synonyms.get(word, frozenset()) & lexicon.synonyms.get(contrary, frozenset())
    ]
    assert both == []


@pytest.mark.parametrize("lexicon", LEXICONS.values(), ids=LEXICONS)
def test_every_phrase_can_be_reached(lexicon: Lexicon) -> None:
    """A rule that another of the same words comes before is never read."""
    for by_second in lexicon.phrases.values():
        for rules in by_second.values():
            words = [(rule.words, rule.is_opening) for rule in rules]
            assert len(words) == len(set(words)), words


@pytest.mark.parametrize(
    "word, base",
    [
        ("children", "child"),
        ("making", "make"),
        ("running", "run"),
        ("studies", "study"),
        ("boxes", "box"),
        ("colours", "color"),
        ("organisation", "organization"),
        ("theatre", "theater"),
        ("installation", "install"),
        ("configuration", "configure"),
        ("removal", "remove"),
        ("quickly", "quick"),
        ("wrote", "write"),
        ("licence", "license"),
    ],
)
def test_english_words_have_their_base_form(word: str, base: str) -> None:
    assert base in english_base_forms(word)


@pytest.mark.parametrize(
    "one, other",
    [
        ("car", "care"),
        ("employer", "employee"),
        ("large", "largest"),
        ("news", "new"),
        ("safe", "unsafe"),
        ("alkane", "alkene"),
        ("station", "state"),
    ],
)
def test_words_that_look_alike_share_no_base_form(one: str, other: str) -> None:
    assert set(english_base_forms(one)).isdisjoint(english_base_forms(other))


@pytest.mark.parametrize(
    "numeral, value",
    [
        ("十", 10),
        ("二十四", 24),
        ("一百零五", 105),
        ("两千", 2000),
        ("三万五千", 35000),
        ("一亿二千万", 120_000_000),
        ("二〇二四", 2024),
        ("万", 10_000),
    ],
)
def test_chinese_numerals_have_their_value(numeral: str, value: int) -> None:
    assert han_value(numeral) == value
