"""Two answers are the same only where nothing speaks against it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.semantic.same_answer import is_same_answer

LONG = "Open the settings, choose security and then reset the password; you will get a mail with a link that is valid for one day only."


@given(st.text())
def test_an_answer_is_the_same_as_itself(answer: str) -> None:
    assert is_same_answer(answer, answer, None)


@pytest.mark.parametrize(
    "first, second, cosine, same",
    [
        ("Paris", "paris.", None, True),
        ("Paris", "The capital of France is Paris.", None, True),
        ("Paris", "Rome", 0.99, False),
        ("42", "43", 0.99, False),
        ("Yes.", "No.", 0.99, False),
        ("Yes, it is safe.", "No, it is safe.", 0.99, False),
        ("It is safe.", "It is not safe.", 0.99, False),
        ("", "Paris", 1.0, False),
        (LONG, LONG.replace("mail", "message"), 0.95, True),
        (LONG, LONG.replace("mail", "message"), None, True),
        (LONG, LONG.replace("one day", "1 day"), 0.99, False),
        (LONG, LONG.replace("will get", "will not get"), 0.99, False),
        (LONG, LONG, 0.1, True),
        (
            LONG,
            "Bake the bread for an hour at a low heat and let it rest on a rack until it is cool enough to be cut in slices.",
            0.4,
            False,
        ),
        (
            LONG,
            "Bake the bread for an hour at a low heat and let it rest on a rack until it is cool enough to be cut in slices.",
            None,
            False,
        ),
    ],
)
def test_numbers_denials_and_nearness_decide(first: str, second: str, cosine: float | None, same: bool) -> None:
    assert is_same_answer(first, second, cosine) == same
    assert is_same_answer(second, first, cosine) == same
