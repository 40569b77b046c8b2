"""The noise of the draw in numpy, which takes half of torch's time for each of many small operations: see noise.py, which says what it is."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.float64]

_HALF = np.uint64(32)
_TOP = np.uint64(28)
_MULTIPLIERS = np.array([0xCD9E8D57, 0xD2511F53], dtype=np.uint64).reshape(2, 1, 1)
# Added to the halves of the key in each round; they are the upper halves of 64 bits, where sums wrap by themselves.
_WEYL = np.array([0x9E3779B9 << 32, 0xBB67AE85 << 32], dtype=np.uint64).reshape(2, 1, 1)
_ROUNDS = [np.uint64(one) * _WEYL for one in range(10)]
_SCALE = 1 / 2.0**32
# Of the words that the lanes of a block need: where the smallest lies, and the others' four times four.
_THIRDS = (np.arange(1, 6, dtype=np.uint64) << _HALF).reshape(5, 1)


def philox(state: Words, keys: Words) -> npt.NDArray[np.uint32]:
    """Ten rounds of Philox4x32.

    A state is two 64-bit integers, (c0 << 32 | c1) and (c2 << 32 | c3): a round multiplies the upper half of each, and the product is the
    new state of the other, but for what its lower half and the key add to the upper half.

    Args:
        state: [2, rows, counters], as they go in; is overwritten.
        keys: [2, rows, 1], the halves of each row's seed in the upper halves.

    Returns:
        [2, rows, counters, 2], the memory of `state`: word 2 i + j is at [i, ..., 1 - j].
    """
    products = np.empty_like(state)
    flipped = state[::-1]
    for step in _ROUNDS:
        np.right_shift(flipped, _HALF, out=products)
        products *= _MULTIPLIERS
        np.left_shift(state, _HALF, out=state)
        state ^= products
        state ^= keys + step
    return state.view(np.uint32).reshape(*state.shape, 2)


def smallest(keys: Words, positions: Words, num_blocks: int) -> Numbers:
    """[rows, blocks]: the smallest exponential of each block."""
    state = np.zeros((2, len(positions), num_blocks // 4), dtype=np.uint64)
    np.bitwise_or(_upper_counts(num_blocks // 4), positions, out=state[0])
    words = philox(state, keys)
    result = np.empty((len(positions), num_blocks // 4, 2, 2))
    result[...] = words[..., ::-1].transpose(1, 2, 0, 3)
    return _exponentials(result, -1 / 16).reshape(len(positions), num_blocks)


def of_blocks(keys: Words, positions: Words, blocks: npt.NDArray[np.int64], least: Numbers) -> Numbers:
    """[rows, n, 16]: the exponentials of all ids of some blocks.

    Args:
        blocks: [rows, n].
        least: [rows, n], their smallest.
    """
    rows, num = blocks.shape
    state = np.empty((2, rows, 5, num), dtype=np.uint64)
    firsts = blocks.view(np.uint64)
    np.right_shift(firsts, np.uint64(2), out=state[0, :, 0])
    state[0, :, 1:] = firsts[:, None]
    np.left_shift(state[0], _HALF, out=state[0])
    state[0] |= positions[:, :, None]
    state[1] = _THIRDS
    words = philox(state.reshape(2, rows, 5 * num), keys).reshape(2, rows, 5, num, 2)
    each_row, each = _counts(rows)[:, None], _counts(num)
    lane = words[(blocks >> 1) & 1, each_row, 0, each, 1 - (blocks & 1)] >> np.uint32(28)
    beyond: Numbers = np.empty((rows, num, 4, 2, 2))
    beyond[...] = words[:, :, 1:, :, ::-1].transpose(1, 3, 2, 0, 4)
    exponentials = _exponentials(beyond, -1.0).reshape(rows, num, 16)
    exponentials[each_row, each, lane] = 0.0
    exponentials += least[:, :, None]
    return exponentials


def xtc_uniforms(keys: Words, positions: Words) -> Numbers:
    """[rows]: the number that decides whether XTC acts."""
    # The only counter whose last word is not 0.
    words = philox(np.stack((positions, np.ones_like(positions))), keys)
    uniforms: Numbers = (words[0, :, 0, 1].astype(np.float64) + 0.5) * _SCALE
    return uniforms


@cache
def _counts(num: int) -> npt.NDArray[np.int64]:
    """0, 1, ... num - 1."""
    return np.arange(num)


@cache
def _upper_counts(num: int) -> Words:
    """The same in the upper halves."""
    return np.arange(num, dtype=np.uint64) << _HALF


def _exponentials(words: npt.NDArray[Any], factor: float) -> Numbers:
    """log((x + 0.5) / 2^32) times a factor, in place."""
    words += 0.5
    words *= _SCALE
    np.log(words, out=words)
    words *= factor
    result: Numbers = words
    return result
