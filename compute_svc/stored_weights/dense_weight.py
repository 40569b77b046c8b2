"""Weights that are stored as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compute_svc.stored_weights.stored_weight import StoredWeight


@dataclass(frozen=True, slots=True, eq=False)
class DenseWeight(StoredWeight):
    """One floating tensor.

    Attributes:
        data: [N, K].
    """

    data: torch.Tensor

    @property
    def out_features(self) -> int:
        """N."""
        return self.data.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.data.shape[1]

    @property
    def format_name(self) -> str:
        """Its dtype."""
        return str(self.data.dtype).removeprefix("torch.")

    @property
    def num_bytes(self) -> int:
        """Of the tensor."""
        return self.data.nbytes

    @property
    def device(self) -> torch.device:
        """Where the tensor is."""
        return self.data.device

    def is_finite(self) -> bool:
        """See `StoredWeight`."""
        return bool(self.data.isfinite().all())

    def to(self, device: torch.device) -> DenseWeight:
        """See `StoredWeight`."""
        return DenseWeight(self.data.to(device))

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """See `StoredWeight`; no copy in its own dtype."""
        return self.data.to(dtype)

    def rows(self, order: torch.Tensor) -> DenseWeight:
        """See `StoredWeight`."""
        return DenseWeight(pick(self.data, order, dim=0))

    def columns(self, order: torch.Tensor) -> DenseWeight:
        """See `StoredWeight`."""
        return DenseWeight(pick(self.data, order, dim=1))

    def some_inputs(self, start: int, stop: int) -> DenseWeight:
        """See `StoredWeight`; new memory."""
        return DenseWeight(self.data[:, start:stop].clone(memory_format=torch.contiguous_format))

    def joined(self, others: Sequence[StoredWeight]) -> DenseWeight:
        """See `StoredWeight`."""
        return DenseWeight(torch.cat([self.data, *(other.dense(self.data.dtype) for other in others)]))


def pick(tensor: torch.Tensor, order: torch.Tensor, *, dim: int, fill: int = 0) -> torch.Tensor:
    """Parts of a tensor along a dimension, new memory.

    Args:
        tensor: Of any dtype and shape.
        order: [n] int64 on the CPU, which part comes where; -1 = one of `fill` alone.
        dim: The dimension.
        fill: See there.
    """
    missing = (order < 0).nonzero().flatten()
    picked = tensor.index_select(dim, order.clamp(min=0).to(tensor.device))
    return picked.index_fill_(dim, missing.to(tensor.device), fill) if len(missing) else picked
