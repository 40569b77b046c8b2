"""The sums of score and noise in numpy, where small operations count, without filters but min_p: see gumbel_max.py, which draws the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import noise_cpu
from compute_svc.drawing.blocks import SPAN, STRIDE
from compute_svc.drawing.noise_cpu import Numbers
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


class Sums(NamedTuple):
    """Of score and noise of the ids of each row's most promising blocks.

    Attributes:
        ids: [rows, n] int64; some do not exist where the last block is not full.
        sums: [rows, n] float64; -inf for ids that do not exist, that min_p drops or that are below the floor.
        bound: [rows, 1] float64: no id of another block has a sum above, -inf if there is no other.
    """

    ids: npt.NDArray[np.int64]
    sums: Numbers
    bound: Numbers


@np.errstate(invalid="ignore")  # rows that are broken go through too
def best_sums(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    best: torch.Tensor,
    numbers: RowNumbers,
    num_blocks: int,
    floors: npt.NDArray[np.float32] | None = None,
) -> Sums:
    """Computes them.

    Args:
        logits: [rows, width] float32.
        maxima: [rows, blocks] float32, of each block.
        best: [rows, 1] float64, the largest score.
        numbers: Of the rows; none of their filters is looked at but min_p.
        num_blocks: Of how many blocks to compute the noise of every id.
        floors: [rows, 1]: other filters leave no id whose logit is below.
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
    if floors is not None:
        bounds[maxima.numpy() < floors] = -np.inf
    # Of torch, which is several times faster than numpy at this alone.
    found = torch.from_numpy(bounds).topk(min(num_blocks + 1, num), dim=1)
    values, blocks = found.values.numpy(), np.ascontiguousarray(found.indices.numpy()[:, :num_blocks])
    each_row = np.arange(rows)[:, None]
    ids, scores = ids_of_blocks(logits.numpy(), each_row, blocks)
    ids, scores = ids.reshape(rows, -1), scores.reshape(rows, -1)
    is_low = scores < floors if floors is not None else None
    scores /= temperature
    sums = scores - np.log(noise_cpu.of_blocks(keys, positions, blocks, least[each_row, blocks]).reshape(rows, -1))
    if hopeless is not None:
        sums[np.exp(scores - top) < numbers.min_p.numpy()] = -np.inf
    if is_low is not None:
        sums[is_low] = -np.inf
    if num <= num_blocks:
        return Sums(ids, sums, np.full((rows, 1), -np.inf))
    rest = values[:, num_blocks:]
    # Where no other block has any chance, nothing times anything infinite is added.
    return Sums(ids, sums, rest + np.minimum((np.abs(rest) + 64.0) * SLACK, LARGEST))


def largest(found: Sums) -> LargestSums:
    """The ids that have the largest sums, the lowest of equals."""
    values = found.sums.max(axis=1, keepdims=True)
    tokens = np.where(found.sums == values, found.ids, NO_ID).min(axis=1, keepdims=True)
    return LargestSums(torch.from_numpy(tokens), torch.from_numpy(values > found.bound))


def ids_of_blocks(
    logits: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Numbers]:
    """The ids of blocks and their logits, -inf for ids that do not exist.

    Args:
        logits: [rows, width].
        rows: Whose the blocks are, of a shape that goes with theirs.
        blocks: Of any shape.

    Returns:
        [*shape of blocks, 16] int64 and float64.
    """
    width = logits.shape[1]
    ids = (((blocks >> 8) << 12) | (blocks & (STRIDE - 1)))[..., None] + _LANES
    if width % SPAN == 0:
        return ids, logits[rows[..., None], ids].astype(np.float64)
    values = logits[rows[..., None], np.minimum(ids, width - 1)].astype(np.float64)
    values[ids >= width] = -np.inf
    return ids, values
