"""The first rank's model and KV as the engine sees them: the whole ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, ForwardOutput
from compute_svc.models.causal_lm import CausalLM
from compute_svc.parallel.processes.leader import Leader


class LedModel:
    """Computes a batch on all ranks.

    Whatever fails in a pass is an end: nobody knows which sums the other ranks wait in.

    Args:
        model: The first rank's part.
        leader: Reaches the others.
    """

    def __init__(self, model: CausalLM, leader: Leader) -> None:
        self._model = model
        self._leader = leader

    @property
    def hidden_size(self) -> int:
        """See `HiddenStatesModel`."""
        return self._model.hidden_size

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See `Model`. The batch's tensors are on the host. Raises RanksLost."""
        return self.forward_with_hidden(batch, kv).logits

    def forward_with_hidden(self, batch: ForwardBatch, kv: KvPageStore) -> ForwardOutput:
        """See `HiddenStatesModel`; otherwise as `forward`."""
        self._leader.send(batch)
        try:
            return self._model.forward_with_hidden(batch, kv)
        except Exception as error:
            raise self._leader.lost(error) from error


class LedPageStore(KvPageStore):
    """The first rank's keys and values; pages are the same on all of them.

    Args:
        leader: Reaches the other ranks.
        args: Of `KvPageStore`, with the layers and heads of one rank.
        kwargs: Likewise.
    """

    def __init__(self, leader: Leader, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leader = leader

    def count_finite(self, pages: npt.NDArray[np.int64]) -> int:
        """See `KvPageStore`; on all ranks. Raises RanksLost."""
        return min(self._leader.count_finite(pages), super().count_finite(pages))
