"""The random stream is Philox4x32-10 to the bit, and a function of seed, position and id alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler_svc.philox import GUMBEL_REACH, gumbel, philox4x32


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


def scalar_gumbel(seed: int, position: int, token: int) -> float:
    """The specification once more, in Python's integers."""
    c = [token, position, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return -math.log(-math.log((c[0] + 0.5) / 2**32))


U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@settings(max_examples=40, deadline=None)
@given(seeds=st.lists(U64, min_size=1, max_size=4), position=U32, ids=st.lists(U32, min_size=1, max_size=5))
def test_noise_is_that_of_each_seed_position_and_id(seeds: list[int], position: int, ids: list[int]) -> None:
    rows = len(seeds)
    noise = gumbel(np.array(seeds, np.uint64), np.full(rows, position, np.uint64), np.tile(np.array(ids, np.uint32), (rows, 1)))
    expected = [[scalar_gumbel(seed, position, token) for token in ids] for seed in seeds]
    np.testing.assert_allclose(noise, expected, rtol=1e-14)


def test_noise_does_not_depend_on_the_shape_it_is_asked_in() -> None:
    ids = np.arange(3 * 20_000, dtype=np.uint32).reshape(3, 20_000)
    seeds, positions = np.array([1, 2**40, 3], np.uint64), np.array([0, 5, 9], np.uint64)
    whole = gumbel(seeds, positions, ids)
    for row in range(3):
        parts = [gumbel(seeds[row : row + 1], positions[row : row + 1], part[None]) for part in np.array_split(ids[row], 7)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1)[0], whole[row])


def test_no_two_values_are_further_apart_than_the_stated_reach() -> None:
    largest = -math.log(-math.log((2**32 - 0.5) / 2**32))
    smallest = -math.log(-math.log(0.5 / 2**32))
    assert largest - smallest < GUMBEL_REACH


def test_noise_has_the_moments_of_a_gumbel_distribution() -> None:
    noise = gumbel(np.array([11], np.uint64), np.array([3], np.uint64), np.arange(200_000, dtype=np.uint32)[None])[0]
    assert abs(noise.mean() - 0.57722) < 0.01
    assert abs(noise.var() - math.pi**2 / 6) < 0.02
