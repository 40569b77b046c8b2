"""A weight that a checkpoint stores as codes: what it is before it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from compute_svc.stored_weights.stored_weight import StoredWeight

RawReader = Callable[[str], torch.Tensor]
"""Gives a tensor exactly as the files store it, by the name it has there; on the CPU, perhaps a memory map."""


CodeUse = Literal["integers", "integers by int8", "float8", "numbers"]
"""What codes may be multiplied as: integers, with activations rounded to int8 where whoever multiplies chooses so, or as the checkpoint is made for it; or
what they stand for alone; float8 where a device multiplies it, by activations that are rounded to it, too."""


class CodedTensor(NamedTuple):
    """One such weight.

    Attributes:
        shape: [N, K].
        kind: What its codes are, for logs: "INT4", "FP8".
        parts: Names of the tensors that it is made of, and of those beside it that play no part.
        read: Makes it. Raises CheckpointError if a number in the files is out of its range.
        use: See there.
        num_bytes: Of memory where it is kept as codes, about; 0 = what its parts take in the files.
    """

    shape: tuple[int, int]
    kind: str
    parts: tuple[str, ...]
    read: Callable[[RawReader], StoredWeight]
    use: CodeUse = "integers"
    num_bytes: int = 0
