"""Philox4x32-10 and the Gumbel noise made of it: a pure function of seed, position and token id."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""32-bit words, each in a 64-bit integer so that products keep their upper half."""

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10
# Temporaries of a block stay in the processor's cache; wider blocks take up to three times as long per id.
_BLOCK_IDS = 16 * 1024

# The extremes of `gumbel`: -log(-log((2**32 - 0.5) / 2**32)) = 22.87 and -log(-log(0.5 / 2**32)) = -3.14.
GUMBEL_REACH = 26.1
"""More than the largest possible difference of two Gumbel values."""


def philox4x32(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox on counters and keys whose shapes broadcast.

    Returns:
        The four output words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0 = (product_1 >> _HALF) ^ c1 ^ k0
        c1 = product_1 & _LOW
        c2 = (product_0 >> _HALF) ^ c3 ^ k1
        c3 = product_0 & _LOW
        k0 = (k0 + _WEYL_0) & _LOW
        k1 = (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


def gumbel(seeds: NDArray[np.uint64], positions: NDArray[np.uint64], ids: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The noise of each token id of each row.

    With x the first output word for key (seed's low half, its high half) and counter (id, position, 0, 0), it is -log(-log(u))
    of u = (x + 0.5) / 2**32, in float64 throughout.

    Args:
        seeds: [rows].
        positions: [rows].
        ids: [rows, width].

    Returns:
        [rows, width], between -3.14 and 22.87.
    """
    rows, width = ids.shape
    noise = np.empty(ids.shape, np.float64)
    columns = min(width, _BLOCK_IDS)
    rows_per_block = max(1, _BLOCK_IDS // max(1, columns))
    for row in range(0, rows, rows_per_block):
        some = slice(row, row + rows_per_block)
        for column in range(0, width, columns):
            block = (some, slice(column, column + columns))
            noise[block] = _gumbel_block(seeds[some, None], positions[some, None], ids[block])
    return noise


def _gumbel_block(seeds: Words, positions: Words, ids: NDArray[np.uint32]) -> NDArray[np.float64]:
    zero = np.zeros_like(seeds)
    first_word = philox4x32((ids.astype(np.uint64), positions, zero, zero), (seeds & _LOW, seeds >> _HALF))[0]
    uniform = (first_word.astype(np.float64) + 0.5) / 2.0**32
    return -np.log(-np.log(uniform))
