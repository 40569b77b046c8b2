"""The noise of the draw: exponentials that are a function of (seed, position, id), by blocks, each with its smallest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import noise_cpu
from compute_svc.drawing.blocks import LANES

_LOW = 0xFFFFFFFF
# As numbers with a sign: what is added to the halves of the key, in the upper halves of 64 bits.
_WEYL = ((0x9E3779B9 << 32) - (1 << 64), (0xBB67AE85 << 32) - (1 << 64))


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

    def on_cpu(self) -> tuple[noise_cpu.Words, noise_cpu.Words]:
        """The same memory, without signs."""
        return self.keys.numpy().view(np.uint64), self.positions.numpy().view(np.uint64)


def key_words(seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """[2, rows]: the halves of seeds, the low one first, as `Streams` has them."""
    upper = np.uint64(0xFFFFFFFF00000000)
    return np.stack((seeds << np.uint64(32), seeds & upper)).view(np.int64)


def smallest(streams: Streams, num_blocks: int) -> torch.Tensor:
    """The smallest exponential of each block.

    Args:
        num_blocks: A multiple of 4.

    Returns:
        [rows, blocks] float64.
    """
    if streams.keys.device.type == "cpu":
        return torch.from_numpy(noise_cpu.smallest(*streams.on_cpu(), num_blocks))
    firsts = torch.arange(num_blocks // 4, device=streams.positions.device)[None]
    return _exponentials(_words(streams, firsts, torch.zeros_like(firsts))).mul_(1 / LANES).flatten(1)


def of_blocks(streams: Streams, blocks: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """The exponentials of all ids of some blocks.

    Args:
        blocks: [rows, n] int64.
        least: [rows, n] float64, their smallest.

    Returns:
        [rows, n, 16] float64.
    """
    if blocks.device.type == "cpu":
        return torch.from_numpy(noise_cpu.of_blocks(*streams.on_cpu(), blocks.numpy(), least.numpy()))
    rows, num = blocks.shape
    firsts = torch.cat((blocks >> 2, blocks, blocks, blocks, blocks), dim=1)
    thirds = torch.arange(1, 6, device=blocks.device).repeat_interleave(num, output_size=5 * num)[None]
    drawn = _words(streams, firsts, thirds)
    places = drawn[:, :num].gather(2, (blocks & 3)[:, :, None])
    lanes = torch.arange(LANES, device=blocks.device)
    beyond = _exponentials(drawn[:, num:].reshape(rows, 4, num, 4).transpose(1, 2).reshape(rows, num, LANES))
    return beyond.masked_fill_(lanes == (places >> 28), 0.0).add_(least[:, :, None])


def xtc_uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[rows]: the number that decides whether XTC acts, on the host."""
    return noise_cpu.xtc_uniforms(key_words(seeds).view(np.uint64)[:, :, None], positions.view(np.uint64)[:, None])


def _words(streams: Streams, firsts: torch.Tensor, thirds: torch.Tensor) -> torch.Tensor:
    """The words of Philox4x32-10 for the counters (first, position, third, 0), as noise_cpu.py makes them.

    Args:
        firsts: [rows or 1, n] int64.
        thirds: [1, n] int64.

    Returns:
        [rows, n, 4] int64.
    """
    first, second = (firsts << 32) | streams.positions, (thirds << 32).expand(streams.positions.shape[0], -1)
    key_first, key_second = streams.keys.unbind(0)
    # Lists of Python's would be copied from memory that is not pinned, so scalars it is.
    for _ in range(10):
        from_first = ((first >> 32) & _LOW) * 0xD2511F53
        from_second = ((second >> 32) & _LOW) * 0xCD9E8D57
        first, second = (first << 32) ^ from_second ^ key_first, (second << 32) ^ from_first ^ key_second
        key_first, key_second = key_first + _WEYL[0], key_second + _WEYL[1]
    return torch.stack(((first >> 32) & _LOW, first & _LOW, (second >> 32) & _LOW, second & _LOW), dim=2)


def _exponentials(words: torch.Tensor) -> torch.Tensor:
    """-log((x + 0.5) / 2^32) in float64."""
    return words.to(torch.float64).add_(0.5).mul_(1 / 2.0**32).log_().neg_()
