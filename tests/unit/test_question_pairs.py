"""The pair set is what the figures measured with it claim: large enough, varied, and in two halves that share nothing."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product

import pytest

from tests.question_pairs import HALVES, Half, QuestionPair, read_pairs

PARAPHRASE_KINDS = {"one_word", "reorder", "voice", "synonyms", "contraction", "polite", "spelling", "typo"}
NEAR_MISS_KINDS = {
    "negation",
    "numbers",
    "units",
    "order",
    "entities",
    "versions",
    "on_off",
    "comparatives",
    "time",
    "scope",
    "code",
    "other",
}
PAIRS: dict[Half, list[QuestionPair]] = {half: read_pairs(half) for half in HALVES}
EVERY = [pair for half in HALVES for pair in PAIRS[half]]


def test_there_are_enough_pairs_of_both_classes() -> None:
    assert sum(pair.same for pair in EVERY) >= 230
    assert sum(not pair.same for pair in EVERY) >= 230


@pytest.mark.parametrize("language", ["zh", "de", "es"])
def test_each_language_has_both_classes_in_several_kinds(language: str) -> None:
    pairs = [pair for pair in EVERY if pair.language == language]
    assert len(pairs) >= 25
    for same in (True, False):
        of_class = [pair for pair in pairs if pair.same is same]
        assert len(of_class) >= 10
        assert len({pair.kind for pair in of_class}) >= 4


def test_every_kind_is_there_and_belongs_to_one_class() -> None:
    assert {pair.kind for pair in EVERY if pair.same} == PARAPHRASE_KINDS
    assert {pair.kind for pair in EVERY if not pair.same} == NEAR_MISS_KINDS
    assert {pair.language for pair in EVERY} == {"en", "zh", "de", "es"}


def test_the_halves_are_alike_in_every_cell() -> None:
    def cells(half: Half) -> Counter[tuple[str, str, bool]]:
        return Counter((pair.language, pair.kind, pair.same) for pair in PAIRS[half])

    assert cells("tuning") == cells("held_out")


def test_fields_have_their_types() -> None:
    types = {"id": int, "language": str, "kind": str, "first": str, "second": str, "same": bool}
    for pair in EVERY:
        assert {name: type(value) for name, value in vars(pair).items()} == types


def test_ids_are_unique_and_ascend() -> None:
    assert len({pair.id for pair in EVERY}) == len(EVERY)
    for half in HALVES:
        ids = [pair.id for pair in PAIRS[half]]
        assert ids == sorted(ids)


def test_no_question_is_there_twice() -> None:
    counts = Counter(_plain(question) for pair in EVERY for question in (pair.first, pair.second))
    assert [question for question, count in counts.items() if count > 1] == []


def test_questions_have_the_length_of_questions() -> None:
    for question in (question for pair in EVERY for question in (pair.first, pair.second)):
        assert question == question.strip()
        words = len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", question))
        assert 4 <= words <= 40, question


def test_no_question_of_one_half_is_nearly_one_of_the_other() -> None:
    tuning, held_out = ([(question, _grams(question)) for pair in PAIRS[half] for question in (pair.first, pair.second)] for half in HALVES)
    close = [
        (one, other)
        for (one, grams), (other, other_grams) in product(tuning, held_out)
        if 0.55 * len(grams) < len(other_grams) < len(grams) / 0.55 and len(grams & other_grams) > 0.55 * len(grams | other_grams)
    ]
    assert close == []


def _plain(question: str) -> str:
    return " ".join(question.casefold().split())


def _grams(question: str) -> set[str]:
    words = re.sub(r"\W+", " ", question.casefold())
    return {words[start : start + 3] for start in range(len(words) - 2)}
