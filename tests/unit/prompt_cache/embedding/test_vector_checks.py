"""What is no use as a vector is told apart from what is."""

from __future__ import annotations

import numpy as np
import pytest

from prompt_cache.embedding.embedder import EmbeddingFailed, Vector
from prompt_cache.embedding.vector_checks import SameVectorWatch, check_unit_vector, check_unrelated


def unit(index: int, dimensions: int = 4) -> Vector:
    vector: Vector = np.eye(dimensions, dtype=np.float32)[index]
    return vector


@pytest.mark.parametrize("factor", [0.9995, 1.0, 1.0005])
def test_a_length_of_nearly_one_is_one(factor: float) -> None:
    check_unit_vector(unit(0) * np.float32(factor), 4)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (unit(0) * np.float32(0.998), "length 0.998"),
        (unit(0) * np.float32(1.002), "length 1.002"),
        (unit(0) * np.float32(0), "length 0"),
        (np.array([1, np.nan, 0, 0], np.float32), "length nan"),
        (np.array([np.inf, 0, 0, 0], np.float32), "length inf"),
        (unit(0, 5), r"shape \[5\], expected \[4\]"),
        (unit(0)[None], r"shape \[1, 4\], expected \[4\]"),
    ],
)
def test_other_vectors_are_refused(vector: Vector, message: str) -> None:
    with pytest.raises(EmbeddingFailed, match=message):
        check_unit_vector(vector, 4)


def test_vectors_of_unrelated_texts_that_are_almost_the_same_are_refused() -> None:
    near = unit(0) + np.float32(0.1) * unit(1)
    near /= np.linalg.norm(near)
    check_unrelated(["a", "b"], [unit(0), unit(1)])
    with pytest.raises(EmbeddingFailed, match=r"'a' and 'c' have the cosine 0.9950: the model does not tell texts apart"):
        check_unrelated(["a", "b", "c"], [unit(0), unit(2), near])


def test_the_same_input_may_have_the_same_vector() -> None:
    watch = SameVectorWatch()
    watch.keep(b"probe", unit(0))
    watch.check([b"probe", b"x", b"x"], [unit(0), unit(1), unit(1)])
    watch.check([b"x"], [unit(1)])
    watch.check([], [])


def test_different_inputs_with_one_vector_are_noticed_in_a_batch_after_it_and_against_probes() -> None:
    watch = SameVectorWatch()
    watch.keep(b"probe", unit(0))
    for inputs, vectors in (([b"x", b"y"], [unit(1), unit(1)]), ([b"x"], [unit(0)])):
        with pytest.raises(EmbeddingFailed, match="two different texts have the same vector"):
            watch.check(inputs, vectors)
    watch.check([b"x"], [unit(2)])
    with pytest.raises(EmbeddingFailed, match="two different texts have the same vector"):
        watch.check([b"y"], [unit(2)])
