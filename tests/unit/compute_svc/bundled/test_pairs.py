from __future__ import annotations

import json
from collections import Counter

import pytest

from compute_svc.bundled.pairs import QUESTIONS_FOLDER, foreign_answer, load_pairs, parse_pair, plain

PAIRS = load_pairs()


def test_there_are_at_least_three_hundred_pairs() -> None:
    assert len(PAIRS) >= 300


def test_every_pair_has_enough_wordings_and_at_least_two_are_held_out() -> None:
    for pair in PAIRS:
        assert len(pair.held_out) >= 2, pair.answer
        assert len(pair.questions) + len(pair.held_out) >= 8, pair.answer


def test_no_question_occurs_twice_and_none_held_out_is_trained_anywhere() -> None:
    counts = Counter(plain(question) for pair in PAIRS for question in (*pair.questions, *pair.held_out))
    assert [question for question, count in counts.items() if count > 1] == []


def test_no_two_pairs_share_an_answer() -> None:
    assert len({pair.answer for pair in PAIRS}) == len(PAIRS)


def test_texts_are_clean_and_answers_are_whole_sentences() -> None:
    for pair in PAIRS:
        for text in (pair.answer, *pair.questions, *pair.held_out):
            assert text and text == " ".join(text.split()), text
        name = "_" in pair.answer.split()[0] or pair.answer.startswith(("/", "`", "--", "bfloat16", "gRPC", "logprobs", "torch", "uvloop"))
        assert pair.answer[-1] in ".!?" and (pair.answer[0].isupper() or name), pair.answer


def test_one_answer_is_for_questions_about_something_else() -> None:
    assert "only know about Triserve" in foreign_answer(PAIRS)


def test_two_answers_for_something_else_are_refused() -> None:
    pair = next(pair for pair in PAIRS if "Something else entirely" in pair.questions)
    with pytest.raises(ValueError, match="2 are"):
        foreign_answer([pair, pair])


def test_a_line_with_other_keys_is_refused_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"^gateway\.jsonl:7: "):
        parse_pair(json.dumps({"answer": "", "questions": [], "heldout": []}), "gateway.jsonl:7")


def test_questions_lie_in_topical_files() -> None:
    assert len(list(QUESTIONS_FOLDER.glob("*.jsonl"))) >= 5


def test_the_same_words_in_other_case_and_punctuation_are_the_same_question() -> None:
    assert plain("What is the KV cache?") == plain("what is the kv cache")
    assert plain("???") == "???"
