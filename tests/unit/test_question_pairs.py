"""The pair set is what the figures measured with it claim: large enough, varied, and what is measured with shares nothing with the rest."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from tests.question_pairs import FITTED, MEASURED, Half, PairFile, QuestionPair, read_pairs

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
PAIRS: dict[PairFile, list[QuestionPair]] = {file: read_pairs(file) for file in (*FITTED, *MEASURED)}
EVERY = [pair for pairs in PAIRS.values() for pair in pairs]


@pytest.mark.parametrize("file", PAIRS)
def test_there_are_enough_pairs_of_both_classes(file: PairFile) -> None:
    assert sum(pair.same for pair in PAIRS[file]) >= 100
    assert sum(not pair.same for pair in PAIRS[file]) >= 100


@pytest.mark.parametrize("file", PAIRS)
@pytest.mark.parametrize("language", ["zh", "de", "es"])
def test_each_language_has_both_classes_in_several_kinds(language: str, file: PairFile) -> None:
    for same in (True, False):
        of_class = [pair for pair in PAIRS[file] if pair.language == language and pair.same is same]
        assert len(of_class) >= 7
        assert len({pair.kind for pair in of_class}) >= 4


@pytest.mark.parametrize("file", PAIRS)
def test_every_kind_is_there_and_belongs_to_one_class(file: PairFile) -> None:
    assert {pair.kind for pair in PAIRS[file] if pair.same} == PARAPHRASE_KINDS
    assert {pair.kind for pair in PAIRS[file] if not pair.same} == NEAR_MISS_KINDS
    assert {pair.language for pair in PAIRS[file]} == {"en", "zh", "de", "es"}


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
    for pairs in PAIRS.values():
        ids = [pair.id for pair in pairs]
        assert ids == sorted(ids)


def test_no_question_is_there_twice() -> None:
    counts = Counter(_plain(question) for pair in EVERY for question in (pair.first, pair.second))
    assert [question for question, count in counts.items() if count > 1] == []


def test_questions_have_the_length_of_questions() -> None:
    for question in (question for pair in EVERY for question in (pair.first, pair.second)):
        assert question == question.strip()
        words = len(re.findall(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+", question))
        assert 4 <= words <= 40, question


def test_no_question_that_is_measured_with_is_nearly_one_that_was_fitted_to() -> None:
    fitted, measured = (
        [question for file in files for pair in PAIRS[file] for question in (pair.first, pair.second)] for files in (FITTED, MEASURED)
    )
    column = {gram: index for index, gram in enumerate({gram for question in (*fitted, *measured) for gram in _grams(question)})}
    ours, theirs = _incidence(fitted, column), _incidence(measured, column)
    shared = ours @ theirs.T  # [fitted, measured]
    either = ours.sum(1)[:, None] + theirs.sum(1) - shared
    assert [(fitted[row], measured[at]) for row, at in np.argwhere(shared > 0.55 * either)] == []


def _plain(question: str) -> str:
    return " ".join(question.casefold().split())


def _grams(question: str) -> set[str]:
    words = re.sub(r"\W+", " ", question.casefold())
    return {words[start : start + 3] for start in range(len(words) - 2)}


def _incidence(questions: list[str], column: dict[str, int]) -> npt.NDArray[np.float32]:
    """Which trigrams each question has: [questions, trigrams], 1 or 0."""
    matrix = np.zeros((len(questions), len(column)), np.float32)
    for row, question in enumerate(questions):
        matrix[row, [column[gram] for gram in _grams(question)]] = 1
    return matrix
