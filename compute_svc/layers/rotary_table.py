"""Sines and cosines of rotary positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

_BLOCK_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies of a model were stretched to reach longer contexts.

    Attributes:
        kind: "linear" divides all of them. "llama3" and "yarn" (arXiv 2309.00071) divide the slow ones and leave the fast ones. "longrope"
            (arXiv 2402.13753) divides each by a number of its own.
        factor: What they are divided by.
        low_freq_factor: Pairs that rotate less often than this over original_max_positions are divided. Llama3 and yarn.
        high_freq_factor: Pairs that rotate more often than this are left; between the two, a mixture. Llama3 and yarn.
        original_max_positions: The context before stretching. Llama3 and yarn.
        amplitude: What sines and cosines are multiplied by; None = what yarn derives from the factor, else 1.
        truncate: The borders of the mixture are whole pairs. Yarn.
        divisors: One for each pair. Longrope.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 1
    amplitude: float | None = None
    truncate: bool = True
    divisors: tuple[float, ...] = ()


def frequencies(dims: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """[dims / 2] float32, radians per position of each pair."""
    plain = 1.0 / (theta ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims))
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "longrope":
        return plain / torch.tensor(scaling.divisors, dtype=torch.float32)
    if scaling.kind == "yarn":
        divided = _yarn_share(dims, theta, scaling)
        return divided * plain / scaling.factor + (1 - divided) * plain
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    share = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - share) * plain / scaling.factor + share * plain


def amplitude(scaling: RopeScaling | None) -> float:
    """What sines and cosines are multiplied by."""
    if scaling is None or (scaling.amplitude is None and scaling.kind != "yarn"):
        return 1.0
    if scaling.amplitude is not None:
        return scaling.amplitude
    return 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0


def _yarn_share(dims: int, theta: float, scaling: RopeScaling) -> torch.Tensor:
    """[dims / 2] float32, from 0, the frequency is left, to 1, it is divided."""

    def pair_with(turns: float) -> float:
        return dims * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_with(scaling.high_freq_factor), pair_with(scaling.low_freq_factor)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    pairs = torch.arange(dims // 2, dtype=torch.float32)
    return ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)


class RotaryTable:
    """cos and sin of every position so far asked for, computed in blocks, so that a position's values never depend on the batch."""

    def __init__(self, frequencies: torch.Tensor, amplitude: float = 1.0, trained_positions: int | None = None) -> None:
        """
        Args:
            frequencies: [D / 2] float32, on the model's device.
            amplitude: What sines and cosines are multiplied by.
            trained_positions: Up to here angles are float32, with the rounding the model was trained with; beyond, where only differences
                of positions are like those it knows, they are exact. None = float32 everywhere.
        """
        self._frequencies = frequencies
        self._amplitude = amplitude
        self._trained_positions = trained_positions
        self._table = frequencies.new_empty((0, 2, 1, 2 * len(frequencies)))

    def at(self, positions: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin for `rotary_`, each [T, 1, D] float32.

        Args:
            positions: [T] int64, all below limit.
            limit: An upper bound, known without reading the tensor.

        Effects: grows the table to cover the limit.
        """
        known = len(self._table)
        if known < limit:
            # Twice as much at least, so that a request that goes on for ever does not have it copied every thousand steps.
            wanted = max(limit, 2 * known)
            self._table = torch.cat((self._table, *(self._block(start) for start in range(known, wanted, _BLOCK_POSITIONS))))
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos, sin

    def _block(self, start: int) -> torch.Tensor:
        positions = torch.arange(start, start + _BLOCK_POSITIONS, device=self._frequencies.device)
        is_exact = self._trained_positions is not None and start >= self._trained_positions
        dtype = torch.float64 if is_exact else torch.float32
        angles = positions[:, None].to(dtype) * self._frequencies.to(dtype)
        cos, sin = angles.cos().float() * self._amplitude, angles.sin().float() * self._amplitude
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)[:, :, None]
