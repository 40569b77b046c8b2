"""A weight that a checkpoint stores as codes: what it is before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from compute_svc.stored_weights.stored_weight import StoredWeight

RawReader = Callable[[str], torch.Tensor]
"""Gives a tensor exactly as the files store it, by the name it has there; on the CPU, perhaps a memory map."""


class CodedTensor(NamedTuple):
    """One such weight.

    Attributes:
        shape: [N, K].
        kind: What its codes are, for logs: "INT4", "FP8".
        parts: Names of the tensors that it is made of, and of those beside it that play no part.
        read: Makes it. Raises CheckpointError if a number in the files is out of its range.
    """

    shape: tuple[int, int]
    kind: str
    parts: tuple[str, ...]
    read: Callable[[RawReader], StoredWeight]
