"""What the engine needs of a model."""

from __future__ import annotations

from typing import Protocol

import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, ForwardOutput


class Model(Protocol):
    """What the engine needs of a model."""

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """Computes a batch.

        Returns:
            [rows of batch.logit_rows, width] float32.

        Effects: writes keys and values to the batch's slots.
        """
        ...


class HiddenStatesModel(Protocol):
    """A model that gives what its output head gets, too."""

    @property
    def hidden_size(self) -> int:
        """Numbers of a vector."""
        ...

    def forward_with_hidden(self, batch: ForwardBatch, kv: KvPageStore) -> ForwardOutput:
        """As `forward`, and the vectors of the batch's hidden_rows."""
        ...
