"""What a quantised checkpoint is written from, part by part: rounded matrices, and tensors that stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch

from compute_svc.models.weights import Checkpoint
from compute_svc.quantise.rounding import round_weight
from compute_svc.quantise.selection import Selection
from compute_svc.stored_weights.coded_weight import CodedWeight

_CPU = torch.device("cpu")
_STORED_AS = {"F64": torch.float32, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WEIGHT = ".weight"


class Part(NamedTuple):
    """Some tensors that are written next.

    Attributes:
        coded: Quantised matrices by module, without ".weight".
        plain: Other tensors by name.
        source_bytes: What they were made of.
    """

    coded: Mapping[str, CodedWeight]
    plain: Mapping[str, torch.Tensor]
    source_bytes: int


class Source:
    """A checkpoint that is read for its quantisation.

    Args:
        checkpoint: Open.
        selection: What becomes of its matrices.
        dropped: Tensors of no use to the model.
        embedding: Its name, without ".weight".
    """

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dropped: frozenset[str], embedding: str) -> None:
        self.checkpoint = checkpoint
        self.selection = selection
        self._embedding = embedding
        self.names = [name for name in checkpoint.tensors if name not in dropped]

    @property
    def num_bytes(self) -> int:
        """Of all tensors, a tied head that becomes one of its own included."""
        head = self.selection.head
        made = [f"{self._embedding}{_WEIGHT}"] if head and f"{head}{_WEIGHT}" not in self.names else []
        return sum(self.checkpoint.tensors[name].num_bytes for name in (*self.names, *made))

    def names_of(self, prefix: str) -> list[str]:
        """Tensors whose names begin so."""
        return [name for name in self.names if name.startswith(prefix)]

    def dtype_of(self, name: str) -> torch.dtype:
        """What a tensor is stored as, or float32 for something longer, and for the blocks of GGUF files."""
        return _STORED_AS.get(self.checkpoint.tensors[name].dtype, torch.float32)

    def weight(self, module: str) -> torch.Tensor:
        """[N, K] float32, the matrix of a module; of the tied head that of the embedding, if it has none itself."""
        return self.checkpoint.read(self.tensor_of(module), torch.float32, _CPU)

    def tensor_of(self, module: str) -> str:
        """The tensor that a module's matrix is read from."""
        name = f"{module}{_WEIGHT}"
        return name if name in self.checkpoint.tensors else f"{self._embedding}{_WEIGHT}"

    def rounded(self, module: str) -> Part:
        """A module's matrix, rounded to nearest."""
        name = self.tensor_of(module)
        coded = round_weight(self.weight(module), self.selection.forms[module], self.dtype_of(name))
        return Part({module: coded}, {}, self.checkpoint.tensors[name].num_bytes)

    def plain(self, name: str) -> Part:
        """A tensor as it is."""
        return Part({}, {name: self.checkpoint.read(name, self.dtype_of(name), _CPU)}, self.checkpoint.tensors[name].num_bytes)


def rounded_parts(source: Source, *, without: str | None = None) -> Iterator[Part]:
    """Everything rounded to nearest, one tensor after the other.

    Args:
        source: What is read.
        without: Tensors whose names begin so are left to others; None = none.

    Raises:
        CheckpointError: A tensor cannot be used.
    """
    forms = source.selection.forms
    for name in source.names:
        if without is not None and name.startswith(without):
            continue
        module = name.removesuffix(_WEIGHT)
        yield source.rounded(module) if module in forms and name.endswith(_WEIGHT) else source.plain(name)
    head = source.selection.head
    if head and f"{head}{_WEIGHT}" not in source.names:
        yield source.rounded(head)
