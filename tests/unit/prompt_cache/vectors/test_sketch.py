"""Of many thousands of vectors the near ones are found without comparing all, whatever came and went before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_cache.vectors.matrix import Matrix
from prompt_cache.vectors.sketch import Sketch

DIMENSIONS = 96
Rows = npt.NDArray[np.float32]


def unit_rows(count: int, seed: int) -> Rows:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSIONS)).astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def near(row: Rows, cosine: float, seed: int) -> Rows:
    """A unit vector at this cosine to another."""
    other = unit_rows(1, seed)[0]
    other -= (other @ row) * row
    return np.asarray(cosine * row + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other), dtype=np.float32)


def filled(rows: Rows, *, most_compared: int = 600) -> Matrix:
    matrix = Matrix(DIMENSIONS, 1 << 30, most_compared=most_compared)
    for number, row in enumerate(rows):
        matrix.put(str(number), row)
    return matrix


def test_whoever_is_as_near_as_a_paraphrase_is_found_among_forty_thousand() -> None:
    rows = unit_rows(40_000, seed=1)
    matrix = filled(rows)
    for number in range(0, 40_000, 400):
        asked = near(rows[number], 0.75, seed=number)
        (found,) = matrix.nearest(asked, 1)
        assert found.entry_id == str(number)
        assert abs(found.cosine - 0.75) < 1e-5


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1499)), max_size=300), st.integers(0, 1 << 16))
def test_what_was_moved_replaced_and_removed_is_found_where_it_is(steps: list[tuple[bool, int]], seed: int) -> None:
    rows, others = unit_rows(1500, seed=2), unit_rows(1500, seed=3)
    matrix, model = filled(rows), {str(number): row for number, row in enumerate(rows)}
    for is_put, which in steps:
        if is_put:
            matrix.put(str(which), others[which])
            model[str(which)] = others[which]
        else:
            matrix.discard(str(which))
            model.pop(str(which), None)
    asked = {str(which) for _, which in steps} | {"7"}
    for name in asked & model.keys():
        (found,) = matrix.nearest(near(model[name], 0.8, seed), 1)
        assert found.entry_id == name
    for name in asked - model.keys():
        assert all(row.entry_id != name for row in matrix.nearest(rows[int(name)], 4))


def test_up_to_a_bound_the_nearest_are_exact() -> None:
    rows = unit_rows(600, seed=4)
    matrix = filled(rows)
    for query in unit_rows(50, seed=5):
        best = np.argsort(-(rows @ query))[:4]
        assert [row.entry_id for row in matrix.nearest(query, 4)] == [str(number) for number in best]


def test_its_memory_is_counted() -> None:
    bound = 2_000_000
    matrix = Matrix(DIMENSIONS, bound, most_compared=600)
    for number, row in enumerate(unit_rows(5000, seed=6)):
        matrix.put(str(number), row)
        assert matrix.num_bytes <= bound
    assert len(matrix) == matrix.max_rows > 2500
    assert Sketch(unit_rows(1, seed=7), 1000).num_bytes == 1000 * 33 * 4
