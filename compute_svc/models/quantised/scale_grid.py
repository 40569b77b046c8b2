"""Scales by blocks of a matrix: one for a block of rows and columns, which may be a whole row, or everything."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.models.quantised.parts import Parts


class ScaleGrid(NamedTuple):
    """How scales of a matrix lie.

    Attributes:
        outputs: N.
        inputs: K.
        rows: Of a block, at most N.
        columns: Of a block, at most K: the group.
    """

    outputs: int
    inputs: int
    rows: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, int], rows: int | None, columns: int | None) -> ScaleGrid:
        """For a matrix [N, K] in blocks of so many rows and columns; None = all."""
        outputs, inputs = shape
        return cls(outputs, inputs, min(rows or outputs, outputs), min(columns or inputs, inputs))

    @property
    def shape(self) -> tuple[int, int]:
        """Of the scales, one for each block."""
        return -(-self.outputs // self.rows), -(-self.inputs // self.columns)

    def require(self, parts: Parts, part: str, *dtypes: str) -> None:
        """Checks that there is a number for each block. Raises CheckpointError if not."""
        if self.shape == (1, 1):
            parts.require_one(part, *dtypes)
        elif self.shape[1] == 1 and len(parts.shape_of(part, *dtypes)) == 1:
            parts.require(part, self.shape[:1], *dtypes)
        else:
            parts.require(part, self.shape, *dtypes)

    def spread(self, numbers: torch.Tensor) -> torch.Tensor:
        """[N, G], new memory: for each row the numbers of the blocks that it runs through."""
        return numbers.reshape(self.shape).repeat_interleave(self.rows, dim=0)[: self.outputs].clone(memory_format=torch.contiguous_format)
