"""The matrix finds what numpy finds, whatever came and went before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_cache.vectors.matrix import ROW_OVERHEAD_BYTES, Matrix
from tests.fakes.vector_backends import DIMENSIONS, at, random_vectors

ROW_BYTES = 4 * DIMENSIONS + ROW_OVERHEAD_BYTES


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 99)), max_size=60), st.integers(0, 12))
def test_the_nearest_are_those_of_a_dictionary(steps: list[tuple[bool, int, int]], k: int) -> None:
    vectors = random_vectors(100)
    matrix, model = Matrix(DIMENSIONS, 10**6), {}
    for is_put, name, which in steps:
        if is_put:
            assert matrix.put(str(name), vectors[which] * 3)
            model[str(name)] = vectors[which]
        else:
            matrix.discard(str(name))
            model.pop(str(name), None)
    query = random_vectors(1, seed=1)[0]
    near = matrix.nearest(query * 0.1, k)
    exact = sorted((float(vector @ query) for vector in model.values()), reverse=True)
    assert [row.cosine for row in near] == pytest.approx(exact[:k], abs=1e-6)
    assert [float(model[row.entry_id] @ query) for row in near] == pytest.approx(exact[:k], abs=1e-6)
    assert len(matrix) == len(model)
    assert {name for name in map(str, range(9)) if name in matrix} == set(model)


def test_a_full_matrix_drops_the_vector_that_came_first() -> None:
    matrix = Matrix(DIMENSIONS, 3 * ROW_BYTES)
    for name in "abc":
        matrix.put(name, at(1))
    matrix.put("a", at(1))
    matrix.put("d", at(1))
    assert [name for name in "abcd" if name in matrix] == ["a", "c", "d"]


def test_its_size_stays_within_the_bound() -> None:
    matrix = Matrix(DIMENSIONS, 100 * ROW_BYTES)
    for number in range(1000):
        matrix.put(str(number), at(1))
        assert matrix.num_bytes <= 100 * ROW_BYTES
    assert len(matrix) == matrix.max_rows == 100


def test_it_holds_one_vector_however_small_the_bound() -> None:
    matrix = Matrix(DIMENSIONS, 0)
    matrix.put("a", at(1))
    matrix.put("b", at(1))
    assert [row.entry_id for row in matrix.nearest(at(1), 5)] == ["b"]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_a_vector_without_a_direction_is_not_kept_and_takes_the_old_one_away(value: float) -> None:
    matrix = Matrix(DIMENSIONS, 10**6)
    matrix.put("a", at(1))
    assert not matrix.put("a", np.full(DIMENSIONS, value, np.float32))
    assert len(matrix) == 0


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_long_and_very_short_vectors_have_their_direction(scale: float) -> None:
    matrix = Matrix(DIMENSIONS, 10**6)
    assert matrix.put("a", (at(0.5).astype(np.float64) * scale).astype(np.float32))
    [near] = matrix.nearest(at(1), 1)
    assert near.cosine == pytest.approx(0.5, abs=1e-5)


def test_a_cosine_is_never_beyond_one() -> None:
    matrix = Matrix(DIMENSIONS, 10**6)
    for number, vector in enumerate(random_vectors(200)):
        matrix.put(str(number), vector)
    for vector in random_vectors(200):
        assert matrix.nearest(vector, 1)[0].cosine <= 1
        assert matrix.nearest(-vector, 200)[-1].cosine >= -1


def test_an_empty_matrix_has_no_neighbours() -> None:
    matrix = Matrix(DIMENSIONS, 10**6)
    assert matrix.nearest(at(1), 3) == []
    matrix.put("a", at(1))
    assert matrix.nearest(at(1), 0) == []
    matrix.clear()
    assert matrix.nearest(at(1), 3) == []
