"""Spelling alone makes the vector, and makes the same one everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.embedding.ngram_embedder import DIMENSIONS, MAX_CHARS, NgramEmbedder, ngram_vector


def cosine(one: str, other: str) -> float:
    vectors = ngram_vector(one), ngram_vector(other)
    assert vectors[0] is not None
    assert vectors[1] is not None
    return float(vectors[0] @ vectors[1])


@given(st.text(max_size=60))
def test_a_vector_is_float32_of_unit_length_or_there_is_none(text: str) -> None:
    vector = ngram_vector(text)
    if vector is not None:
        assert vector.shape == (DIMENSIONS,)
        assert vector.dtype == np.dtype(np.float32)
        assert abs(float(np.linalg.norm(vector)) - 1) < 1e-6


def test_the_bits_are_the_same_on_every_machine() -> None:
    digests = []
    for text in ("How do I reset my password?", "Wie groß ist Zürich?", "非洲最长的河是哪一条", "a"):
        vector = ngram_vector(text)
        assert vector is not None
        digests.append(hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()[:12])
    assert digests == ["acb20d8f238b", "19bf605891fe", "563b28873a84", "2a74d543b7f6"]


async def test_a_text_has_the_same_bits_alone_and_beside_others() -> None:
    embedder = NgramEmbedder()
    texts = ["one two", "three", "", "four five six"]
    together = await embedder.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        (alone,) = await embedder.embed([text])
        assert (alone is None) == (vector is None) == (not text)
        if vector is not None:
            np.testing.assert_array_equal(vector, alone)
    await embedder.close()


@pytest.mark.parametrize("text", ["", " \n\t", "a" * (MAX_CHARS + 1), "\ud800"])
def test_what_is_empty_too_long_or_no_unicode_has_no_vector(text: str) -> None:
    assert ngram_vector(text) is None


def test_the_longest_text_has_one() -> None:
    assert ngram_vector("a" * MAX_CHARS) is not None


@pytest.mark.parametrize(
    ("one", "other"), [("Hello World", "hello  world\n"), ("\uff21\uff22\uff23", "abc"), ("cafe\u0301", "caf\u00e9"), ("straße", "STRASSE")]
)
def test_case_spaces_and_composition_make_no_difference(one: str, other: str) -> None:
    assert cosine(one, other) == pytest.approx(1)


def test_like_spelling_is_nearer_than_other_spelling() -> None:
    question = "How do I reset my password?"
    assert cosine(question, "How can I reset my password?") > 0.8 > 0.3 > cosine(question, "Which river is the longest in Africa?")


def test_it_says_that_it_is_weak() -> None:
    embedder = NgramEmbedder()
    assert (embedder.is_weak, embedder.dimensions, embedder.id) == (True, 1024, "ngram-1024/1")
