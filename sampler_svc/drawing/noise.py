"""Philox4x32-10 and the exponential clocks made of it, as `SamplingParams` in common.proto says: functions of seed, position and token id."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""32-bit words, each in a 64-bit integer so that products keep their upper half."""

LANES = 16
"""Ids in a block."""
LANE_STRIDE = 256
"""How far apart they lie."""

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10


class BlockMinima(NamedTuple):
    """The smallest exponential of each block."""

    exponential: NDArray[np.float64]  # [blocks]
    lane: Words  # [blocks] which of the 16 has it


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


def block_of(ids: Words) -> Words:
    """The block of each id: its 16 ids lie 256 apart."""
    return ((ids >> np.uint64(12)) << np.uint64(8)) | (ids & np.uint64(255))


def lane_of(ids: Words) -> Words:
    """The place of each id in its block."""
    return (ids >> np.uint64(8)) & np.uint64(15)


def block_minima(seed: int, position: int, width: int) -> BlockMinima:
    """The smallest exponentials of all blocks that have an id below `width`."""
    num_blocks = -(-width // (LANES * LANE_STRIDE)) * LANE_STRIDE
    calls = np.arange(num_blocks // 4, dtype=np.uint64)
    smallest, lane = (_w(seed, position, calls, np.uint64(b), 0).ravel() for b in (0, 1))
    return BlockMinima(_t(smallest) / LANES, lane >> np.uint64(28))


def exponentials(seed: int, position: int, ids: Words, minima: BlockMinima) -> NDArray[np.float64]:
    """The standard exponential e of each id.

    Args:
        seed: key of the random stream.
        position: index of the token in the answer.
        ids: [ids].
        minima: of this seed and position, for all blocks of the ids.

    Returns:
        [ids], between 7e-12 and 24.4.
    """
    block, lane = block_of(ids), lane_of(ids)
    words = _w(seed, position, block, np.uint64(2) + (lane >> np.uint64(2)), 0)
    beyond = _t(np.take_along_axis(words, (lane & np.uint64(3)).astype(np.intp)[:, None], axis=1)[:, 0])
    smallest: NDArray[np.float64] = minima.exponential[block]
    return np.where(lane == minima.lane[block], smallest, smallest + beyond)


def xtc_uniform(seed: int, position: int) -> float:
    """The u of XTC, between 0 and 1."""
    zero = np.zeros(1, np.uint64)
    return (float(_w(seed, position, zero, zero[0], 1)[0, 0]) + 0.5) / 2.0**32


def _w(seed: int, position: int, a: Words, b: Words | np.uint64, c: int) -> Words:
    """The specification's w for each a: [len(a), 4]."""
    counter = np.broadcast_arrays(a, np.uint64(position), b, np.uint64(c))
    words = philox4x32(
        (counter[0], counter[1], counter[2], counter[3]), (np.full(1, seed & 0xFFFFFFFF, np.uint64), np.full(1, seed >> 32, np.uint64))
    )
    return np.stack(words, axis=1)


def _t(x: Words) -> NDArray[np.float64]:
    uniform: NDArray[np.float64] = (x.astype(np.float64) + 0.5) / 2.0**32
    return -np.log(uniform)
