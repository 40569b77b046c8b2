"""The noise of the draw: exponentials that are a function of (seed, position, id), by blocks, each with its smallest first."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import noise_cpu, noise_device


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
    halves = np.empty((2, seeds.size), dtype=np.uint64)
    np.left_shift(seeds, np.uint64(32), out=halves[0])
    np.bitwise_and(seeds, np.uint64(0xFFFFFFFF00000000), out=halves[1])
    return halves.view(np.int64)


def smallest(streams: Streams, num_blocks: int) -> torch.Tensor:
    """The smallest exponential of each block.

    Args:
        num_blocks: A multiple of 4.

    Returns:
        [rows, blocks] float64.
    """
    if streams.keys.device.type == "cpu":
        return torch.from_numpy(noise_cpu.smallest(*streams.on_cpu(), num_blocks))
    return noise_device.smallest(streams.keys, streams.positions, num_blocks)


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
    return noise_device.of_blocks(streams.keys, streams.positions, blocks, least)


def xtc_uniforms(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """[rows]: the number that decides whether XTC acts, on the host."""
    return noise_cpu.xtc_uniforms(key_words(seeds).view(np.uint64)[:, :, None], positions.view(np.uint64)[:, None])
