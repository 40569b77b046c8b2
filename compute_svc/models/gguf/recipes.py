"""How a tensor of a family's checkpoint is made of the tensors of a GGUF file.

Everything that conversion to GGUF does to weights is done to whole rows - rows of a matrix are the outputs of a projection, and blocks lie
within rows -, so that a recipe is a list of rows, an order, and little more. Weights may stay packed in their blocks under it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.models.gguf.dequantise import Floats, read_rows, require_readable
from compute_svc.models.gguf.packed import can_stay_packed, read_packed_rows
from compute_svc.stored_weights.stored_weight import StoredWeight, join
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError, GgufTensor

Order = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Some rows of a GGUF tensor; the numbers of a vector count as rows.

    Attributes:
        tensor: Whose.
        first: The first one, all dimensions but the last taken as one.
        num_rows: How many.
        order: [num_rows] which of them comes where; None = as they lie.
    """

    tensor: GgufTensor
    first: int
    num_rows: int
    order: Order | None = None


class Recipe(NamedTuple):
    """A tensor as its family has it.

    Attributes:
        shape: Of the tensor.
        parts: Rows that stand one under another.
        order: [rows] which of all of them comes where; None = as they stand.
        added: To every number.
        transposed: The rows become columns in the end.
    """

    shape: tuple[int, ...]
    parts: tuple[Rows, ...]
    order: Order | None = None
    added: float = 0.0
    transposed: bool = False

    def read(self) -> Floats:
        """The tensor, `shape`. Raises GgufError if the file cannot be read."""
        pieces = [_read(part) for part in self.parts]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        if self.order is not None:
            whole = whole[self.order]
        if self.added:
            whole = whole + np.float32(self.added)
        return np.ascontiguousarray(whole.T if self.transposed else whole).reshape(self.shape)

    @property
    def packed_format(self) -> str | None:
        """The format of the blocks that all its rows may stay in; None if they are numbers, or become others, or columns."""
        tensors = [part.tensor for part in self.parts]
        formats = {tensor.format.name for tensor in tensors}
        if len(self.shape) != 2 or self.added or self.transposed or len(formats) > 1 or not all(map(can_stay_packed, tensors)):
            return None
        return formats.pop()

    def read_packed(self) -> StoredWeight:
        """The tensor in its blocks' codes, where `packed_format` is some. Raises GgufError if the file cannot be read."""
        whole = join([_read_packed(part) for part in self.parts])
        return whole if self.order is None else whole.rows(torch.from_numpy(self.order))


def _read(part: Rows) -> Floats:
    if len(part.tensor.shape) == 1:
        rows = read_rows(part.tensor, 0, 1)[0, part.first : part.first + part.num_rows]
    else:
        rows = read_rows(part.tensor, part.first, part.num_rows)
    return rows if part.order is None else rows[part.order]


def _read_packed(part: Rows) -> StoredWeight:
    rows = read_packed_rows(part.tensor, part.first, part.num_rows)
    return rows if part.order is None else rows.rows(torch.from_numpy(part.order))


def unpermuted(num_heads: int, head_dim: int) -> Order:
    """[num_heads * head_dim]: the rows of query or key heads as the families have them, halves of a head turning together.

    Llama.cpp lays the rows that turn together side by side, so that its kernel for neighbours serves these families too.
    """
    return np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def grouped(num_kv_heads: int, heads_per_group: int, head_dim: int) -> Order:
    """[rows]: for each key head its queries, its key, its value, out of all queries, all keys, all values."""
    num_heads = num_kv_heads * heads_per_group
    queries = np.arange(num_heads).reshape(num_kv_heads, heads_per_group)
    keys = num_heads + np.arange(num_kv_heads)[:, None]
    heads = np.concatenate((queries, keys, keys + num_kv_heads), axis=1).reshape(-1)
    return (heads[:, None] * head_dim + np.arange(head_dim)).reshape(-1)


class TensorMap:
    """The recipes of a model, made one by one; knows which tensors of the file are used.

    Args:
        file: The model.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.recipes: dict[str, Recipe] = {}
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor."""
        return name in self.file.tensors

    def tensor(self, name: str) -> GgufTensor:
        """A tensor of the file, which counts as used. Raises GgufError if there is none or its format is not read."""
        if name not in self.file.tensors:
            raise GgufError(f"{self.file.place} holds no tensor {name}, which {self.file.architecture} needs")
        self._used.add(name)
        require_readable(self.file.tensors[name])
        return self.file.tensors[name]

    def rows(self, name: str, first: int = 0, count: int | None = None, order: Order | None = None, *, of: int | None = None) -> Rows:
        """Rows of a tensor.

        Args:
            name: As the file calls it.
            first: The first one.
            count: How many; None = all.
            order: See `Rows`.
            of: How many it must have; None = enough.

        Raises:
            GgufError: It has another number of them, or there is none of that name.
        """
        tensor = self.tensor(name)
        there = tensor.shape[0] if len(tensor.shape) == 1 else math.prod(tensor.shape[:-1])
        count = there if count is None else count
        needed = first + count if of is None else of
        if first + count > there or there != (of or there) or (order is not None and len(order) != count):
            raise GgufError(f"{self.file.place}: tensor {name} has {there} rows, {self.file.architecture} as its metadata say has {needed}")
        return Rows(tensor, first, count, order)

    def add(self, name: str, *parts: Rows, order: Order | None = None, added: float = 0.0, transposed: bool = False) -> None:
        """Says how a tensor is made.

        Args:
            name: As the family calls it.
            parts: See `Recipe`.
            order: See `Recipe`.
            added: See `Recipe`.
            transposed: See `Recipe`.

        Raises:
            GgufError: The parts do not fit each other.
        """
        count = sum(part.num_rows for part in parts)
        columns = {part.tensor.shape[-1] if len(part.tensor.shape) > 1 else 1 for part in parts}
        if len(columns) > 1 or (order is not None and len(order) != count):
            sizes = ", ".join(f"{part.tensor.name} {list(part.tensor.shape)}" for part in parts)
            raise GgufError(f"{self.file.place}: tensors {sizes} do not make up {name}")
        is_matrix = len(parts[0].tensor.shape) > 1
        shape = (count, *columns) if is_matrix else (count,)
        self.recipes[name] = Recipe(shape[::-1] if transposed else shape, parts, order, added, transposed)

    def copy(self, name: str, source: str, *, added: float = 0.0, transposed: bool = False) -> None:
        """A weight that is a tensor of the file, and its bias where there is one.

        Args:
            name: As the family calls it, without ".weight".
            source: As the file calls it, likewise.
            added: See `Recipe`; of the weight.
            transposed: See `Recipe`; of the weight.
        """
        self.add(f"{name}.weight", self.rows(f"{source}.weight"), added=added, transposed=transposed)
        if self.has(f"{source}.bias"):
            self.add(f"{name}.bias", self.rows(f"{source}.bias"))

    def row(self, name: str, source: str) -> None:
        """A matrix of one row, which the file may have as a vector.

        Raises:
            GgufError: It has more rows, or there is none of that name.
        """
        tensor = self.tensor(source)
        if math.prod(tensor.shape[:-1]) != 1:
            raise GgufError(f"{self.file.place}: tensor {source} has the shape {list(tensor.shape)}, it must be one row")
        whole = tensor.shape[0] if len(tensor.shape) == 1 else 1
        self.recipes[name] = Recipe((1, tensor.shape[-1]), (Rows(tensor, 0, whole),))

    def experts(self, name: str, source: str, count: int) -> None:
        """The weight of every expert, out of one tensor that holds all.

        Args:
            name: As the family calls it, without ".weight"; `{}` stands for the expert.
            source: As the file calls it, likewise.
            count: How many experts there are.
        """
        tensor = self.tensor(f"{source}.weight")
        if len(tensor.shape) != 3 or tensor.shape[0] != count:
            raise GgufError(f"{self.file.place}: tensor {tensor.name} has the shape {list(tensor.shape)}, it must be of {count} experts")
        rows = tensor.shape[1]
        for expert in range(count):
            self.add(f"{name.format(expert)}.weight", Rows(tensor, expert * rows, rows))

    def finish(self, ignored: Sequence[str] = ()) -> dict[str, Recipe]:
        """All recipes.

        Raises:
            GgufError: The file holds tensors that none of them uses.
        """
        unused = [name for name in self.file.tensors if name not in self._used and name not in ignored]
        if unused:
            shown = ", ".join(unused[:8]) + (f" and {len(unused) - 8} more" if len(unused) > 8 else "")
            raise GgufError(f"{self.file.place} holds tensors that {self.file.architecture} is not known to have: {shown}")
        return self.recipes
