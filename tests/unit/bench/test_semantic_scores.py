"""What a cache served is counted as what it is: own answer, wrong answer, another question's answer."""

from __future__ import annotations

import pytest

from tests.bench.semantic.semantic_scores import Score, kinds_failed, score, scores_by_language
from tests.question_pairs import QuestionPair


def _pair(number: int, *, same: bool, language: str = "en", kind: str = "order") -> QuestionPair:
    return QuestionPair(id=number, language=language, kind=kind, first=f"first {number}", second=f"second {number}", same=same)


PAIRS = [_pair(0, same=True, kind="voice"), _pair(1, same=True, language="de", kind="voice"), _pair(2, same=False), _pair(3, same=False)]


@pytest.mark.parametrize(
    ("served", "true_hits", "false_hits", "strays"),
    [
        ([0, 1, None, None], 2, 0, 0),
        ([None, None, None, None], 0, 0, 0),
        ([0, 0, None, None], 1, 0, 1),
        # A near miss has no right answer: that of another pair is as wrong as its own.
        ([None, None, 2, 0], 0, 2, 0),
    ],
)
def test_hits_are_counted_by_what_they_are(served: list[int | None], true_hits: int, false_hits: int, strays: int) -> None:
    assert score(PAIRS, served) == Score(paraphrases=2, near_misses=2, true_hits=true_hits, false_hits=false_hits, strays=strays)


def test_precision_counts_every_wrong_hit_and_is_none_without_hits() -> None:
    assert score(PAIRS, [0, 0, 2, None]).precision == pytest.approx(1 / 3)
    assert score(PAIRS, [None] * 4).precision is None
    assert score(PAIRS[2:], [None] * 2).true_hit_rate is None


def test_languages_add_up_and_indices_stay_those_of_the_half() -> None:
    scores = scores_by_language(PAIRS, [0, 1, None, 3])
    assert scores["de"] == Score(paraphrases=1, near_misses=0, true_hits=1, false_hits=0, strays=0)
    assert scores["all"].true_hits == scores["de"].true_hits + scores["en"].true_hits


def test_failures_are_told_by_kind() -> None:
    assert kinds_failed(PAIRS, [0, None, 2, None]) == {"near misses served": {"order": "1/2"}, "paraphrases missed": {"voice": "1/2"}}
