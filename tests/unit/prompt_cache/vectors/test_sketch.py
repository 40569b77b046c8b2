"""Of many thousands of vectors the near ones are found without comparing all, whatever came and went before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_cache.vectors.matrix import Matrix
from prompt_cache.vectors.sketch import Sketch
from tests.bench.semantic.made_vectors import clustered, paraphrases

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
    for number in (*range(0, 40_000, 400), 39_999):
        asked = near(rows[number], 0.75, seed=number)
        (found,) = matrix.nearest(asked, 1)
        assert found.entry_id == str(number)
        assert abs(found.cosine - 0.75) < 1e-5


def test_among_crowds_the_nearest_is_found_if_it_is_as_near_as_a_paraphrase() -> None:
    rows = clustered(20_000, DIMENSIONS, seed=8)
    matrix = filled(rows)
    for query in paraphrases(rows, 200, seed=9):
        nearest = int(np.argmax(rows @ query))
        assert rows[nearest] @ query > 0.75, "what is tried is what is promised"
        assert matrix.nearest(query, 1)[0].entry_id == str(nearest)


def test_far_fewer_rows_than_there_are_are_compared() -> None:
    rows = unit_rows(20_000, seed=10)
    candidates = Sketch(rows, len(rows)).candidates(rows[3], len(rows))
    assert 512 <= len(candidates) < 2000
    assert len(set(candidates.tolist())) == len(candidates)


@pytest.mark.parametrize("num_rows", [1535, 1536, 1537, 1663, 1664, 1665, 3071, 3072, 3073])
def test_every_row_may_be_found_wherever_it_stands(num_rows: int) -> None:
    rows = unit_rows(num_rows, seed=11)
    sketch = Sketch(rows, num_rows)
    for row in (0, 1, 127, 128, 1535, num_rows - 2, num_rows - 1):
        if row < num_rows:
            assert row in sketch.candidates(rows[row], num_rows)


def test_a_sketch_that_was_changed_is_as_one_made_anew() -> None:
    rows, others = unit_rows(4000, seed=12), unit_rows(1000, seed=13)
    changed = Sketch(rows, len(rows))
    for number, other in enumerate(others):
        changed.set(2 * number, other)
        changed.move(3999 - number, 2 * number + 1)
    anew = rows.copy()
    anew[0:2000:2], anew[1:2000:2] = others, rows[:2999:-1]
    made = Sketch(anew, len(anew))
    for query in unit_rows(20, seed=14):
        assert changed.candidates(query, 3000).tolist() == made.candidates(query, 3000).tolist()


@settings(max_examples=20)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1999)), max_size=300), st.integers(0, 1 << 16))
def test_what_was_moved_replaced_and_removed_is_found_where_it_is(steps: list[tuple[bool, int]], seed: int) -> None:
    # More than the sketch would give back whole, however many of them go.
    rows, others = unit_rows(2000, seed=2), unit_rows(2000, seed=3)
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
