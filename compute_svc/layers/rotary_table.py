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
        kind: "linear" divides all of them; "llama3" divides the slow ones and leaves the fast ones.
        factor: What they are divided by.
        low_freq_factor: Wavelengths over original_max_positions / low_freq_factor are divided. Llama3 only.
        high_freq_factor: Wavelengths under original_max_positions / high_freq_factor are left; between the two, a mixture. Llama3 only.
        original_max_positions: The context before stretching. Llama3 only.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 1


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> torch.Tensor:
    """[head_dim / 2] float32, radians per position of each pair."""
    plain = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    share = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - share) * plain / scaling.factor + share * plain


class RotaryTable:
    """cos and sin of every position so far asked for, computed in blocks, so that a position's values never depend on the batch."""

    def __init__(self, frequencies: torch.Tensor) -> None:
        """
        Args:
            frequencies: [D / 2] float32, on the model's device.
        """
        self._frequencies = frequencies
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
            self._table = torch.cat((self._table, *(self._block(start) for start in range(known, limit, _BLOCK_POSITIONS))))
        cos, sin = self._table.index_select(0, positions).unbind(1)
        return cos, sin

    def _block(self, start: int) -> torch.Tensor:
        positions = torch.arange(start, start + _BLOCK_POSITIONS, device=self._frequencies.device)
        angles = positions[:, None].float() * self._frequencies
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)[:, :, None]
