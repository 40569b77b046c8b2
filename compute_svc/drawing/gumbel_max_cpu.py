"""The draw in numpy for rows without filters but min_p, where small operations count: see gumbel_max.py, which draws the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import noise_cpu
from compute_svc.drawing.blocks import LANES, SPAN, STRIDE
from compute_svc.drawing.rows import RowNumbers

# Sums are compared with bounds that logarithms of other numbers went into, each rounded on its own.
SLACK = 1e-12
NO_ID = 1 << 31  # above every id
LARGEST = float(np.finfo(np.float64).max)
# How far below min_p a block's best may seem to be and still be looked at id by id.
NEAR = 1 - 1e-9
_LANES = np.arange(0, SPAN, STRIDE)


class LargestSums(NamedTuple):
    """Of some rows.

    Attributes:
        tokens: [rows, 1] int64, the ids.
        is_drawn: [rows, 1] bool, whether no block that was left out can have a larger sum.
    """

    tokens: torch.Tensor
    is_drawn: torch.Tensor


@np.errstate(invalid="ignore")  # rows that are broken go through too
def largest_sums(logits: torch.Tensor, maxima: torch.Tensor, best: torch.Tensor, numbers: RowNumbers, num_blocks: int) -> LargestSums:
    """Finds the ids.

    Args:
        logits: [rows, width] float32.
        maxima: [rows, blocks] float32, of each block.
        best: [rows, 1] float64, the largest score.
        numbers: Of the rows; none of their filters is in use but min_p.
        num_blocks: Of how many blocks to compute the noise of every id.
    """
    rows, num = maxima.shape
    keys, positions = numbers.streams.on_cpu()
    temperature, top = numbers.temperature.numpy(), best.numpy()
    least = noise_cpu.smallest(keys, positions, num)
    bounds = maxima.numpy() / temperature
    hopeless = np.exp(bounds - top) < numbers.min_p.numpy() * NEAR if numbers.needs.min_p else None
    bounds -= np.log(least)
    if hopeless is not None:
        bounds[hopeless] = -np.inf
    # Of torch, which is several times faster than numpy at this alone.
    found = torch.from_numpy(bounds).topk(min(num_blocks + 1, num), dim=1)
    values, blocks = found.values.numpy(), np.ascontiguousarray(found.indices.numpy()[:, :num_blocks])
    ids, scores = _scores(logits.numpy(), blocks)
    scores /= temperature
    each_row = np.arange(rows)[:, None]
    sums = scores - np.log(noise_cpu.of_blocks(keys, positions, blocks, least[each_row, blocks]).reshape(rows, -1))
    if hopeless is not None:
        sums[np.exp(scores - top) < numbers.min_p.numpy()] = -np.inf
    largest = sums.max(axis=1, keepdims=True)
    tokens = np.where(sums == largest, ids, NO_ID).min(axis=1, keepdims=True)
    is_drawn = np.ones((rows, 1), dtype=np.bool_)
    if num > num_blocks:
        rest = values[:, num_blocks:]
        # Where no other block has any chance, nothing times anything infinite is compared.
        is_drawn = (largest > rest + np.minimum((np.abs(rest) + 64.0) * SLACK, LARGEST)) & (largest > -np.inf)
    return LargestSums(torch.from_numpy(tokens), torch.from_numpy(is_drawn))


@np.errstate(invalid="ignore")  # rows that are broken go through too
def in_nucleus(
    logits: npt.NDArray[np.float32], maxima: npt.NDArray[np.float32], tokens: npt.NDArray[np.int64], numbers: RowNumbers
) -> npt.NDArray[np.bool_]:
    """Whether top_p leaves an id for certain, without ranking the row.

    What has the largest sum of all ids has it among any of them that it is one of. So an id that was drawn as if there were no top_p is
    what top_p draws if it leaves it, which it does with a probability of top_p at least: the others have to be ranked.

    Args:
        logits: [rows, width].
        maxima: [rows, blocks], of each block.
        tokens: [rows, 1], an id of each row.
        numbers: Of the rows.

    Returns:
        [rows, 1]; False where it is left out, or so near to it that the order of a sum could tell.
    """
    result = np.zeros(tokens.shape, dtype=np.bool_)
    for row, (temperature, top_p) in enumerate(zip(numbers.temperature.flatten().tolist(), numbers.top_p.flatten().tolist(), strict=True)):
        values, token = logits[row], int(tokens[row, 0])
        if token >= values.size:  # the row is broken
            continue
        level, top = values[token], np.float64(maxima[row].max()) / temperature
        mass = np.exp(values[values > level] / np.float64(temperature) - top).sum()
        mass += np.count_nonzero(values[:token] == level) * np.exp(level / np.float64(temperature) - top)
        # The likeliest of each block are a part of all, and nearly always enough of it.
        for some in (maxima[row], values):
            if mass < top_p * NEAR * np.exp(some / np.float64(temperature) - top).sum():
                result[row] = True
                break
    return result


def _scores(logits: npt.NDArray[np.float32], blocks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """[rows, n * 16]: the ids of blocks and their logits, -inf for ids that do not exist."""
    rows, width = logits.shape
    base = ((blocks >> 8) << 12) | (blocks & (STRIDE - 1))
    ids = (base[:, :, None] + _LANES).reshape(rows, -1)
    each_row = np.arange(rows)[:, None]
    assert ids.shape[1] == blocks.shape[1] * LANES, "a block has an id a lane"
    if width % SPAN == 0:
        return ids, logits[each_row, ids].astype(np.float64)
    values = logits[each_row, np.minimum(ids, width - 1)].astype(np.float64)
    values[ids >= width] = -np.inf
    return ids, values
