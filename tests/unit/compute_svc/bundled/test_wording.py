from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from compute_svc.bundled.wording import reword


@given(question=st.text(min_size=1), seed=st.integers(0, 1000))
def test_rewording_takes_any_text_and_depends_on_the_seed_alone(question: str, seed: int) -> None:
    assert reword(question, random.Random(seed)) == reword(question, random.Random(seed))


def test_a_definition_is_asked_for_in_many_forms() -> None:
    forms = {reword("What is the merge step?", random.Random(seed)).lower().strip(" ?.!") for seed in range(300)}
    assert {"what is the merge step", "explain the merge step", "what does the merge step mean", "define the merge step"} <= forms
