"""A hashing model that fails when it is told to, in each way a step can fail."""

from __future__ import annotations

from typing import Literal

import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from tests.fakes.hash_model import HashModel

Fault = Literal["no memory", "half written", "a row is missing", "no numbers"]
FAULTS: tuple[Fault, ...] = ("no memory", "half written", "a row is missing", "no numbers")

_GARBAGE = 12345.0


class UnreliableModel(HashModel):
    """Fails in its next forward pass if `fault` is set, and is well again after it.

    Attributes:
        fault: "no memory" raises before anything is written, "half written" after garbage is; "a row is missing" leaves out a row of logits,
            "no numbers" makes the first one NaN.
    """

    fault: Fault | None = None

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See `HashModel`."""
        fault, self.fault = self.fault, None
        if fault == "no memory":
            raise MemoryError("a prompt is too large")
        logits = super().forward(batch, kv)
        if fault == "half written":
            kv.kv(0).data.view(2, -1)[:, batch.slots] = _GARBAGE
            raise RuntimeError("the device is lost")
        if fault == "a row is missing":
            return logits[1:]
        if fault == "no numbers":
            logits[:1] = torch.nan
        return logits
