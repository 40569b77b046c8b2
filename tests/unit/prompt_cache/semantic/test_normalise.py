"""What is compared is the same however it was typed."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.semantic.normalise import folded, normalise


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_nothing_unseen_is_left(text: str) -> None:
    result = normalise(text)
    assert not [char for char in result if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    assert "  " not in result and result == result.strip()


def test_composed_and_decomposed_letters_are_one() -> None:
    assert normalise("u\u0308ber") == "\u00fcber"


def test_zero_width_and_direction_marks_go_and_case_stays() -> None:
    assert normalise("\ufeff What\u200bever\u202e\t\n  IS it\x00 ") == "Whatever IS it"


def test_a_joiner_between_a_letter_and_its_accent_leaves_one_letter() -> None:
    assert normalise("e\u200b\u0301") == "\u00e9"


def test_folding_drops_case_spaces_and_the_marks_of_sentences_alone() -> None:
    assert folded("  What IS  it?! ") == folded("what is it")
    assert folded("¿Qué es?") == folded("qué es")
    for one, other in (("C++", "C"), ("C#", "C"), ("3.5", "35"), ("-5", "5"), ("a.b", "ab"), ("x = y", "x y")):
        assert folded(one) != folded(other)
