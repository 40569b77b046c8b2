"""A checkpoint as one rank sees it: its parts of the tensors of its layers, as if they were all there is."""

from __future__ import annotations

import math

import torch

from compute_svc.models.config import ModelConfig
from compute_svc.models.tensor_shapes import check_tensors
from compute_svc.models.weight_names import WeightNames
from compute_svc.models.weights import Checkpoint, CheckpointError, Take, TensorInfo
from compute_svc.parallel.parts.layer_shares import tensors_of
from compute_svc.parallel.parts.shares import Cut, Share
from compute_svc.stored_weights.dense_weight import DenseWeight
from compute_svc.stored_weights.stored_weight import StoredWeight


class SlicedCheckpoint(Checkpoint):
    """Reads a rank's parts. Of dense safetensors nothing else is read; codes and GGUF's blocks are read whole, a tensor at a time, and cut then.

    Args:
        base: The whole one.
        whole: What its model is.
        names: What it calls its tensors.
        share: Whose parts.
        layers: Of the rank's stage.

    Raises:
        CheckpointError: Its tensors are not that model's.
    """

    def __init__(self, base: Checkpoint, whole: ModelConfig, names: WeightNames, share: Share, layers: range) -> None:
        check_tensors(base.tensors, whole, names)
        self._base = base
        own = {name: base.tensors[name] for name in tensors_of(layers, base.tensors, names, whole.num_layers)}
        cuts = share.cuts(whole, names) if share.size > 1 else {}
        self._cuts = {name: cut for name, cut in cuts.items() if name in own}
        self.tensors = {name: _part(info, self._cuts.get(name)) for name, info in own.items()}

    def weight(self, name: str, dtype: torch.dtype, device: torch.device) -> StoredWeight:
        """See `Checkpoint`.

        Raises:
            CheckpointError: As there; or codes cannot be cut where this rank's part ends.
        """
        cut = self._cuts.get(name)
        if cut is None:
            return self._base.weight(name, dtype, device)
        if not self.tensors[name].coded_bytes:
            return DenseWeight(self.read(name, dtype, device))
        whole = self._base.weight(name, dtype, torch.device("cpu"))
        if cut.dim == 0:
            return whole.rows(cut.order).to(device)
        ((start, stop),) = cut.ranges
        try:
            return whole.some_inputs(start, stop).to(device)
        except ValueError as error:
            raise CheckpointError(f"weight {name}: {error}; COMPUTE_TENSOR_PARALLEL = 1 serves it") from error

    def read(self, name: str, dtype: torch.dtype, device: torch.device, *, take: Take | None = None) -> torch.Tensor:
        """See `Checkpoint`."""
        assert take is None, "a part is not cut again"
        if self.tensors[name].coded_bytes:
            return self.weight(name, dtype, device).dense(dtype)
        cut = self._cuts.get(name)
        return self._base.read(name, dtype, device, take=None if cut is None else cut.take)


def _part(info: TensorInfo, cut: Cut | None) -> TensorInfo:
    if cut is None:
        return info
    shape = cut.shape(info.shape)
    coded_bytes = 0 if not info.coded_bytes else max(1, info.coded_bytes * math.prod(shape) // math.prod(info.shape))
    return info._replace(shape=shape, coded_bytes=coded_bytes)
