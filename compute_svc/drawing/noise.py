"""The noise of the draw: exponentials that are a function of (seed, position, id), by blocks, each with its smallest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.arithmetic import log_, philox_rounds
from compute_svc.drawing.blocks import LANES

_WORD = 2.0**32


class Streams(NamedTuple):
    """Where the noise of some rows comes from.

    Attributes:
        keys: [2, rows, 1] int64, the halves of the seeds, each in the upper half.
        positions: [rows, 1] int64.
    """

    keys: torch.Tensor
    positions: torch.Tensor

    def of(self, start: int, end: int) -> Streams:
        """Those of a range of rows."""
        return Streams(self.keys[:, start:end], self.positions[start:end])


def key_words(seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """[2, rows]: the halves of seeds, the low one first, as `Streams` has them."""
    upper = np.uint64(0xFFFFFFFF00000000)
    return np.stack((seeds << np.uint64(32), seeds & upper)).view(np.int64)


def words(streams: Streams, firsts: torch.Tensor, thirds: torch.Tensor | int) -> torch.Tensor:
    """The words of Philox for the counters (first, position, third, 0).

    Args:
        firsts: [rows or 1, n] int64.
        thirds: The same shape, or one for all.

    Returns:
        [rows, n, 4] float64, integers of 32 bits.
    """
    rows, num = streams.positions.shape[0], firsts.shape[1]
    state = torch.empty((2, rows, num), dtype=torch.int64, device=firsts.device)
    torch.bitwise_or(firsts << 32, streams.positions, out=state[0])
    if isinstance(thirds, int):
        state[1].fill_(thirds << 32)
    else:
        state[1].copy_(thirds << 32)
    state = philox_rounds(state, streams.keys)
    halves = torch.empty((rows, num, 2, 2), dtype=torch.float64, device=firsts.device)
    first_halves = halves[..., 0].permute(2, 0, 1)
    if state.device.type == "cpu":
        numbers = state.numpy().view(np.uint32).reshape(2, rows, num, 2)
        halves.numpy()[...] = numbers[..., ::-1].transpose(1, 2, 0, 3)
    else:
        first_halves.copy_((state >> 32) & 0xFFFFFFFF)
        halves[..., 1].permute(2, 0, 1).copy_(state & 0xFFFFFFFF)
    return halves.view(rows, num, 4)


def smallest(streams: Streams, num_blocks: int) -> torch.Tensor:
    """The smallest exponential of each block.

    Args:
        num_blocks: A multiple of 4.

    Returns:
        [rows, blocks] float64.
    """
    firsts = torch.arange(num_blocks // 4, device=streams.positions.device)[None]
    return _exponentials(words(streams, firsts, 0)).mul_(1 / LANES).flatten(1)


def of_blocks(streams: Streams, blocks: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """The exponentials of all ids of some blocks.

    Args:
        blocks: [rows, n] int64.
        least: [rows, n] float64, their smallest.

    Returns:
        [rows, n, 16] float64.
    """
    rows, num = blocks.shape
    firsts = torch.cat((blocks >> 2, blocks, blocks, blocks, blocks), dim=1)
    thirds = torch.arange(1, 6, device=blocks.device).repeat_interleave(num, output_size=5 * num)[None]
    drawn = words(streams, firsts, thirds)
    places = drawn[:, :num].gather(2, (blocks & 3)[:, :, None])
    lanes = torch.arange(LANES, dtype=torch.float64, device=blocks.device)
    is_least = lanes == places.mul_(1 / (1 << 28)).floor_()
    beyond = _exponentials(drawn[:, num:].reshape(rows, 4, num, 4).transpose(1, 2).reshape(rows, num, LANES))
    return beyond.masked_fill_(is_least, 0.0).add_(least[:, :, None])


def xtc_uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[rows]: the number that decides whether XTC acts, on the host."""
    streams = Streams(torch.from_numpy(key_words(seeds))[:, :, None], torch.from_numpy(positions)[:, None])
    # The only counter whose last word is not 0.
    state = torch.stack((streams.positions, torch.ones_like(streams.positions)))
    first = philox_rounds(state, streams.keys)[0, :, 0].numpy().view(np.uint64) >> np.uint64(32)
    return (first.astype(np.float64) + 0.5) / _WORD


def _exponentials(drawn: torch.Tensor) -> torch.Tensor:
    """-log((x + 0.5) / 2^32), in place."""
    return log_(drawn.add_(0.5).mul_(1 / _WORD)).neg_()
