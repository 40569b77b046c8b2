"""The random stream is Philox4x32-10 to the bit, and its exponentials are the specification's: standard, independent, known by blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sampler_svc.drawing.noise import block_minima, block_of, exponentials, lane_of, philox4x32, xtc_uniform
from tests.fakes.literal_draw import exponential

# What fair samples exceed once in a thousand; the seeds are fixed, so a test that passes once passes for ever.
KOLMOGOROV = 1.95
NORMAL = 3.3


# Published with Random123, in its file of known answers: counter, key, output.
@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_ten_rounds_give_the_published_answers(counter: str, key: str, output: str) -> None:
    words = [np.array([int(word, 16)], np.uint64) for word in (counter + " " + key).split()]
    result = philox4x32((words[0], words[1], words[2], words[3]), (words[4], words[5]))
    assert [int(word[0]) for word in result] == [int(word, 16) for word in output.split()]


def of_ids(seed: int, position: int, ids: list[int] | NDArray[np.uint64]) -> NDArray[np.float64]:
    ids = np.asarray(ids, np.uint64)
    return exponentials(seed, position, ids, block_minima(seed, position, int(ids.max()) + 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**18), min_size=1, max_size=5))
def test_the_exponential_of_an_id_is_that_of_seed_position_and_id_alone(seed: int, position: int, ids: list[int]) -> None:
    np.testing.assert_allclose(of_ids(seed, position, ids), [exponential(seed, position, token) for token in ids], rtol=1e-14)


def whole(seed: int, position: int, width: int = 65_536) -> NDArray[np.float64]:
    return of_ids(seed, position, np.arange(width, dtype=np.uint64))


def test_the_smallest_of_a_block_is_its_smallest_and_that_of_no_other_lane() -> None:
    ids = np.arange(65_536, dtype=np.uint64)
    blocks = np.empty((4096, 16))
    blocks[block_of(ids), lane_of(ids)] = whole(3, 5)
    minima = block_minima(3, 5, 65_536)
    np.testing.assert_array_equal(blocks.min(axis=1), minima.exponential)
    np.testing.assert_array_equal(blocks.argmin(axis=1), minima.lane)
    assert ((blocks == blocks.min(axis=1, keepdims=True)).sum(axis=1) == 1).all()


def test_blocks_cover_every_id_once_and_lie_256_apart() -> None:
    ids = np.arange(3 * 4096, dtype=np.uint64)
    assert len(set(zip(block_of(ids).tolist(), lane_of(ids).tolist(), strict=True))) == len(ids)
    assert ids[block_of(ids) == 256 + 7].tolist() == [4096 + 7 + 256 * lane for lane in range(16)]


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**63 + 11, 4_000_000_000), (12345, 17)])
def test_exponentials_are_standard(seed: int, position: int) -> None:
    """Kolmogorov-Smirnov, of all ids and of each lane of a block."""
    values = whole(seed, position)
    for some in (values, *(values.reshape(16, 16, 256)[:, lane].ravel() for lane in range(16))):
        expected = 1 - np.exp(-np.sort(some))
        places = np.arange(len(some) + 1) / len(some)
        distance = max(np.abs(expected - places[1:]).max(), np.abs(expected - places[:-1]).max())
        assert distance * np.sqrt(len(some)) < KOLMOGOROV


def test_exponentials_of_ids_positions_and_seeds_are_independent() -> None:
    """Uncorrelated as ranks, for neighbours in every direction: of a block, of a call, of a position, of a seed."""
    base = whole(7, 100)
    pairs = [(base[:-step], base[step:]) for step in (1, 2, 4, 255, 256, 512, 1024, 3840, 4096)]
    pairs += [(base, whole(7, 101)), (base, whole(8, 100)), (base, whole(7 + 2**32, 100)), (base, whole(100, 7))]
    for one, other in pairs:
        for power in (1, 3):  # the third shows dependence in the tail
            correlation = np.corrcoef((1 - np.exp(-one)) ** power, (1 - np.exp(-other)) ** power)[0, 1]
            assert abs(correlation) * np.sqrt(len(one)) < NORMAL


def test_pairs_in_one_block_fill_the_square_evenly() -> None:
    """Chi-square of two lanes' ranks on a grid of 8 by 8, over all pairs of lanes that differ."""
    uniform = np.exp(-np.stack([whole(seed, 9) for seed in range(4)]).reshape(4, 16, 16, 256))
    for one in range(15):
        cells = np.floor(uniform[:, :, one] * 8).astype(int) * 8 + np.floor(uniform[:, :, one + 1] * 8).astype(int)
        counts = np.bincount(cells.ravel(), minlength=64)
        expected = cells.size / 64
        assert ((counts - expected) ** 2 / expected).sum() < 112  # 63 degrees of freedom, once in 7,000


def test_the_lane_of_the_smallest_is_uniform() -> None:
    counts = np.bincount(block_minima(4, 4, 1 << 20).lane.astype(int), minlength=16)
    expected = counts.sum() / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7  # 15 degrees of freedom, once in a thousand


def test_the_uniform_of_xtc_is_uniform_and_none_of_the_exponentials_words() -> None:
    values = np.sort([xtc_uniform(6, position) for position in range(1500)])
    places = np.arange(1501) / 1500
    assert max(np.abs(values - places[1:]).max(), np.abs(values - places[:-1]).max()) * np.sqrt(1500) < KOLMOGOROV
    assert xtc_uniform(6, 0) != pytest.approx(np.exp(-16 * block_minima(6, 0, 1).exponential[0]))
