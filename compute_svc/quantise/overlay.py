"""A checkpoint with some of its tensors replaced."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from compute_svc.models.weights import Checkpoint, Take
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.dense_weight import DenseWeight
from compute_svc.stored_weights.stored_weight import StoredWeight

_WEIGHT = ".weight"


class OverlaidCheckpoint(Checkpoint):
    """Reads as another checkpoint does, and what is laid over it in place of its own.

    Args:
        base: The other.
        coded: Matrices by module, without ".weight"; also those that the other has not, a head of its own.
        plain: Other tensors by name, all of the other's shapes.
    """

    def __init__(self, base: Checkpoint, coded: Mapping[str, CodedWeight], plain: Mapping[str, torch.Tensor]) -> None:
        self._base = base
        self._over = {f"{module}{_WEIGHT}": weight for module, weight in coded.items()}
        self._plain = plain
        any_info = next(iter(base.tensors.values()))
        added = {
            name: any_info._replace(shape=(weight.out_features, weight.in_features), dtype="F32", coded_bytes=0)
            for name, weight in self._over.items()
        }
        self.tensors = {**base.tensors, **added}

    def weight(self, name: str, dtype: torch.dtype, device: torch.device) -> StoredWeight:
        """See `Checkpoint`."""
        return self._over[name].to(device) if name in self._over else DenseWeight(self.read(name, dtype, device))

    def read(self, name: str, dtype: torch.dtype, device: torch.device, *, take: Take | None = None) -> torch.Tensor:
        """See `Checkpoint`."""
        assert take is None, "what is laid over a checkpoint is read whole"
        if name in self._over:
            return self._over[name].dense(dtype).to(device)
        if name in self._plain:
            return self._plain[name].to(device=device, dtype=dtype, copy=True)
        return self._base.read(name, dtype, device)
