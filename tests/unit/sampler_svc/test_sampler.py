"""Filters at their edges, and rows that do not feel their neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sampler_svc.philox import gumbel
from sampler_svc.sampler import KEEP_ALL, DrawParams, draw, likeliest


def params(rows: int, **columns: Any) -> DrawParams:
    """Columns for some rows, from one value or one for each."""
    defaults: dict[str, Any] = {
        "temperature": 1.0,
        "top_k": KEEP_ALL,
        "top_p": 1.0,
        "min_p": 0.0,
        "log_total": np.nan,
        "seed": 0,
        "position": 0,
    }
    arrays: dict[str, Any] = {}
    for name, value in (defaults | columns).items():
        kind = {"top_k": np.int64, "seed": np.uint64, "position": np.uint64}.get(name, np.float64)
        arrays[name] = np.full(rows, value, kind) if np.isscalar(value) else np.array(value, kind)
    return DrawParams(**arrays)


def drawable(logits: list[float], draws: int = 400, **columns: Any) -> set[int]:
    """Ids that come up over many positions."""
    table = np.tile(np.array(logits, np.float64), (draws, 1))
    ids = np.tile(np.arange(len(logits), dtype=np.uint32), (draws, 1))
    result = draw(ids, table, params(draws, **columns)._replace(position=np.arange(draws, dtype=np.uint64)))
    assert result.possible.all()
    return set(result.token.tolist())


LOG = np.log


def test_temperature_zero_takes_the_likeliest_and_among_equals_the_lowest_id() -> None:
    ids = np.array([[7, 3, 9, 5]], np.uint32)
    assert draw(ids, np.array([[1.0, 4.0, 4.0, 0.0]]), params(1, temperature=0.0)).token.tolist() == [3]
    assert draw(ids[:, ::-1], np.array([[0.0, 4.0, 4.0, 1.0]]), params(1, temperature=0.0)).token.tolist() == [3]


def test_top_k_of_one_is_greedy_at_any_temperature() -> None:
    assert drawable([1.0, 1.1, 1.05], top_k=1, temperature=50.0) == {1}


def test_top_k_keeps_the_lowest_ids_of_equals_at_its_edge() -> None:
    assert drawable([0.0, 2.0, 0.0, 0.0, 0.0], top_k=3) == {0, 1, 2}


def test_top_k_beyond_the_row_keeps_all() -> None:
    assert drawable([0.0, 0.0, 0.0], top_k=1000) == {0, 1, 2}


def test_top_p_keeps_the_token_that_reaches_p_and_none_after_it() -> None:
    logits = LOG([0.5, 0.3, 0.15, 0.05]).tolist()
    assert drawable(logits, top_p=0.45) == {0}
    assert drawable(logits, top_p=0.6) == {0, 1}
    assert drawable(logits, top_p=0.79) == {0, 1}
    assert drawable(logits, top_p=0.81) == {0, 1, 2}


def test_top_p_never_keeps_nothing() -> None:
    assert drawable([0.0, 0.0, 0.0, 0.0], top_p=1e-30) == {0}


def test_top_p_is_of_what_top_k_left() -> None:
    # Of all: 0.4 + 0.3 < 0.75, so three would stay. Of the two that top-k leaves, the first has 0.57 and both are needed.
    logits = LOG([0.4, 0.3, 0.2, 0.1]).tolist()
    assert drawable(logits, top_p=0.75) == {0, 1, 2}
    assert drawable(logits, top_p=0.75, top_k=2) == {0, 1}
    assert drawable(logits, top_p=0.55, top_k=2) == {0}


def test_top_p_counts_what_is_not_among_the_candidates_where_the_total_is_known() -> None:
    candidates = LOG([0.3, 0.2, 0.1]).tolist()  # the row's other tokens have 0.4 together
    assert drawable(candidates, top_p=0.45, log_total=0.0) == {0, 1}
    assert drawable(candidates, top_p=0.45) == {0}


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = LOG([0.5, 0.26, 0.24]).tolist()
    assert drawable(logits, min_p=0.5) == {0, 1}
    assert drawable(logits, min_p=1.0) == {0}
    assert drawable(logits, min_p=0.5, top_k=3) == {0, 1}


def test_min_p_is_taken_at_the_request_temperature() -> None:
    assert drawable(LOG([0.5, 0.25]).tolist(), min_p=0.6, temperature=2.0, draws=400) == {0, 1}


def test_logits_of_minus_infinity_are_never_drawn() -> None:
    for columns in ({}, {"top_k": 3}, {"top_p": 0.99}, {"temperature": 0.0}, {"temperature": 100.0}):
        assert 1 not in drawable([0.0, -np.inf, -1.0, -np.inf], **columns)


def test_a_row_of_minus_infinities_is_impossible_and_harms_no_other() -> None:
    ids = np.tile(np.arange(3, dtype=np.uint32), (3, 1))
    logits = np.array([[0.0, 1.0, 2.0], [-np.inf] * 3, [5.0, 1.0, 2.0]])
    for columns in ({"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}, {}):
        result = draw(ids, logits, params(3, **columns))
        assert result.possible.tolist() == [True, False, True]
        alone = [draw(ids[row : row + 1], logits[row : row + 1], params(1, **columns)).token[0] for row in (0, 2)]
        assert result.token[[0, 2]].tolist() == alone


def test_extreme_temperatures_give_tokens_and_no_warning() -> None:
    assert drawable([1.0, 2.0, -3.0], temperature=1.4e-45) == {1}
    assert drawable([1.0, 2.0, -3.0], temperature=1.4e-45, top_p=0.5) == {1}
    assert drawable([3e38, -3e38, 0.0], temperature=1.4e-45, top_k=2) == {0}
    assert drawable([1.0, 2.0, -3.0], temperature=100.0) == {0, 1, 2}


def test_draws_follow_the_distribution() -> None:
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    draws = 20_000
    ids = np.tile(np.arange(4, dtype=np.uint32), (draws, 1))
    for temperature in (0.5, 1.0, 2.0):
        columns = params(draws, temperature=temperature)._replace(position=np.arange(draws, dtype=np.uint64))
        counts = np.bincount(draw(ids, np.tile(LOG(probabilities), (draws, 1)), columns).token, minlength=4)
        expected = probabilities ** (1 / temperature)
        expected *= draws / expected.sum()
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < 16.27, counts  # 0.1 % of fair draws exceed it; the seed is fixed


def test_a_fixed_seed_gives_the_same_tokens_for_ever() -> None:
    ids = np.tile(np.arange(8, dtype=np.uint32), (12, 1))
    logits = np.tile(np.arange(8) / 4.0, (12, 1))
    columns = params(12, seed=1234567890123456789)._replace(position=np.arange(12, dtype=np.uint64))
    assert draw(ids, logits, columns).token.tolist() == [6, 7, 0, 6, 4, 2, 7, 2, 4, 5, 4, 4]


def wide_rows(rows: int, width: int) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Rows too wide to be sorted whole, with many equals, ids in no order."""
    random = np.random.default_rng(5)
    ids = np.stack([random.permutation(width) for _ in range(rows)]).astype(np.uint32)
    return ids, np.round(random.normal(0.0, 3.0, (rows, width)), 2)


def obvious(ids: NDArray[np.uint32], logits: NDArray[np.float64], columns: DrawParams, row: int) -> int:
    """One row by sorting all of it."""
    order = np.lexsort((ids, -logits))
    ids, scaled = ids[order], logits[order] / columns.temperature[row]
    kept = np.arange(len(ids)) < columns.top_k[row]
    weights = np.where(kept, np.exp(scaled - scaled[0]), 0.0)
    before = np.concatenate(([0.0], np.cumsum(weights)[:-1]))
    if columns.top_p[row] < 1:
        kept &= before < columns.top_p[row] * weights.sum()
    kept &= weights >= columns.min_p[row]
    keys = np.where(kept, scaled + gumbel(columns.seed[row : row + 1], columns.position[row : row + 1], ids[None])[0], -np.inf)
    return int(ids[keys == keys.max()].min())


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"temperature": 0.4},
        {"top_k": [1, 7, 50, 900, 1200, KEEP_ALL]},
        {"top_p": [0.01, 0.3, 0.7, 0.95, 0.9999, 1.0], "temperature": 0.8},
        {"top_p": 0.999, "temperature": 30.0},
        {"top_k": [2, 300, 5000, KEEP_ALL, KEEP_ALL, 40], "top_p": [0.5, 0.9, 0.9, 0.5, 1.0, 0.3], "min_p": 0.001},
        {"min_p": [0.0, 0.5, 0.01, 1.0, 0.9, 0.1]},
    ],
    ids=str,
)
def test_wide_rows_are_drawn_as_if_sorted_whole(columns: dict[str, Any]) -> None:
    ids, logits = wide_rows(6, 9000)
    these = params(6, seed=[1, 2, 3, 4, 5, 2**63], position=[0, 1, 2, 3, 4, 4_000_000_000], **columns)
    together = draw(ids, logits, these)
    assert together.token.tolist() == [obvious(ids[row], logits[row], these, row) for row in range(6)]
    for row in range(6):
        some = np.array([row])
        assert draw(ids[some], logits[some], these.of(some)).token[0] == together.token[row]


def test_the_likeliest_are_falling_and_equals_rising_by_id() -> None:
    ids = np.array([8, 2, 5, 1, 9], np.uint32)
    logits = np.array([1.0, 3.0, 3.0, -np.inf, 1.0])
    assert ids[likeliest(ids, logits, 3)].tolist() == [2, 5, 8]
    assert ids[likeliest(ids, logits, 9)].tolist() == [2, 5, 8, 9, 1]
    assert likeliest(ids, logits, 0).tolist() == []
