"""The draw as the specification says it, of every id, in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def draw(
    logits: npt.NDArray[np.float32], seed: int, position: int, temperature: float, min_p: float = 0.0, top_k: int = 0, top_p: float = 1.0
) -> int | None:
    """The token of one row; None = it is broken.

    Args:
        logits: [width].
        seed: Unsigned.
        position: Of the token in the answer.
        temperature: 0 = greedy.
        min_p: 0 = all.
        top_k: 0 = all.
        top_p: 1 = all.
    """
    best = logits.max()  # NaN if there is one
    if not np.isfinite(best):
        return None
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.astype(np.float64) / temperature
    sums = scores - np.log(exponentials(seed, position, np.arange(logits.size)))
    weights = np.exp(scores - scores.max())
    sums[weights < min_p] = -np.inf
    if top_k or top_p < 1:
        order = np.lexsort((np.arange(logits.size), -logits))[: top_k or logits.size]
        before = np.cumsum(weights[order])
        left = order if top_p == 1 else order[: int(np.searchsorted(before, top_p * before[-1])) + 1]
        sums[np.setdiff1d(np.arange(logits.size), left)] = -np.inf
    return int(sums.argmax())


def exponentials(seed: int, position: int, ids: npt.NDArray[np.int64]) -> Numbers:
    """[n]: the noise of each id."""
    blocks, lanes = (ids >> 12) << 8 | (ids & 255), (ids >> 8) & 15
    each = np.arange(ids.size)
    least = _exponential(philox(seed, blocks >> 2, position, 0)[each, blocks & 3]) / 16
    first = philox(seed, blocks >> 2, position, 1)[each, blocks & 3] >> np.uint64(28)
    beyond = _exponential(philox(seed, blocks, position, 2 + (lanes >> 2))[each, lanes & 3])
    result: Numbers = np.where(lanes == first.astype(np.int64), least, least + beyond)
    return result


def philox(seed: int, firsts: npt.NDArray[np.int64], position: int, thirds: npt.NDArray[np.int64] | int) -> Words:
    """[n, 4]: the words of Philox4x32-10 for the counters (first, position, third, 0)."""
    c0, c2 = firsts.astype(np.uint64), np.broadcast_to(np.uint64(thirds), firsts.shape)
    c1, c3 = np.full_like(c0, position), np.zeros_like(c0)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product2 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c2 = (product2 >> _HALF) ^ c1 ^ np.uint64(k0), (product0 >> _HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = product2 & _LOW, product0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=1)


def _exponential(words: Words) -> Numbers:
    result: Numbers = -np.log((words.astype(np.float64) + 0.5) / 2.0**32)
    return result
