"""Weights that are stored as codes of a few bits with scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from compute_svc.stored_weights.codes import BITS, Code, pack_codes, unpack_codes
from compute_svc.stored_weights.dense_weight import DenseWeight, pick
from compute_svc.stored_weights.stored_weight import StoredWeight

Activations = Literal["float", "int8", "fp8"]
"""What a checkpoint wants to be multiplied by: activations as they are, or rounded, each token to a scale of its own."""


_OPTIONAL_TENSORS = ("zeros", "offsets", "table", "inputs", "static_scale")


class SparsePart(NamedTuple):
    """Numbers that are added to those of the codes; compressed sparse rows.

    Attributes:
        starts: [N + 1] int64, where each output's begin.
        inputs: [n] int64, whose they are.
        values: [n] float32.
    """

    starts: torch.Tensor
    inputs: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CodedWeight(StoredWeight):
    """w[n, k] = (value(code[n, k]) - zero[n, g]) * scale[n, g] + offset[n, g] for column k of group g = k // group, in float32.

    Attributes:
        code: What a code is.
        data: [N, ceil(K * bits / 8)] uint8, as `pack_codes` lays them; [N, K] float8_e4m3fn for fp8.
        num_columns: K.
        group: Columns that share a scale; the last group may have fewer.
        scales: [N, G], float32 or what it is stored as, widened before use.
        zeros: [N, G], integers of any dtype; None = 0.
        offsets: [N, G] float32; None = 0.
        table: [2^bits] or [N, 2^bits] float32, the value of each code; None = the code's own.
        inputs: [K] int64, which input each column belongs to; None = the same. As GPTQ orders them by activation.
        num_inputs: Of x, where it has more than there are columns: the others count for nothing. None = K.
        sparse: Added; its inputs are x's, not columns. None = nothing.
        activations: What it is made to be multiplied by.
        static_scale: Of the activations, float32 of one number; None = each token has its own.
    """

    code: Code
    data: torch.Tensor
    num_columns: int
    group: int
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    table: torch.Tensor | None = None
    inputs: torch.Tensor | None = None
    num_inputs: int | None = None
    sparse: SparsePart | None = None
    activations: Activations = "float"
    static_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if the tensors do not fit each other."""
        groups = -(-self.num_columns // self.group)
        bits = BITS[self.code]
        shapes: dict[str, tuple[torch.Tensor, tuple[int, ...]]] = {
            "data": (self.data, (self.out_features, -(-self.num_columns * bits // 8)))
        }
        shapes |= {
            name: (tensor, (self.out_features, groups))
            for name, tensor in (("scales", self.scales), ("zeros", self.zeros), ("offsets", self.offsets))
            if tensor is not None
        }
        if self.inputs is not None:
            shapes["inputs"] = (self.inputs, (self.num_columns,))
        for name, (tensor, shape) in shapes.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has the shape {list(tensor.shape)}, it must be {list(shape)}")
        if self.table is not None and self.table.shape[-1] != 1 << bits:
            raise ValueError(f"table has the shape {list(self.table.shape)}, codes of {bits} bits have {1 << bits} values")

    @property
    def out_features(self) -> int:
        """N."""
        return self.data.shape[0]

    @property
    def in_features(self) -> int:
        """Of x."""
        return self.num_columns if self.num_inputs is None else self.num_inputs

    @property
    def format_name(self) -> str:
        """Code and groups."""
        name = self.code if self.table is None else f"tables of {1 << BITS[self.code]}"
        grouped = name if self.group >= self.num_columns else f"{name} in groups of {self.group}"
        return grouped if self.activations == "float" else f"{grouped}, activations in {self.activations}"

    @property
    def num_bytes(self) -> int:
        """Of all tensors."""
        tensors = [self.data, self.scales, self.zeros, self.offsets, self.table, self.inputs, *(self.sparse or ())]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.data.device

    def to(self, device: torch.device) -> CodedWeight:
        """See `StoredWeight`."""
        moved = {name: _moved(getattr(self, name), device) for name in _OPTIONAL_TENSORS}
        sparse = None if self.sparse is None else SparsePart(*(tensor.to(device) for tensor in self.sparse))
        return replace(self, data=self.data.to(device), scales=self.scales.to(device), sparse=sparse, **moved)

    def is_finite(self) -> bool:
        """See `StoredWeight`."""
        numbers = [self.scales, self.zeros, self.offsets, self.table, self.static_scale, self.sparse and self.sparse.values]
        if self.code == "fp8":
            # All other bits set: the one number of float8_e4m3fn that is none.
            numbers.append(torch.where((self.data.view(torch.uint8) & 0x7F) == 0x7F, torch.inf, 0.0).amax())
        return all(tensor is None or bool(tensor.isfinite().all()) for tensor in numbers)

    def codes(self) -> torch.Tensor:
        """[N, K], integers as int8 or uint8; float8_e4m3fn for fp8."""
        if self.code == "fp8":
            return self.data
        return unpack_codes(self.data, BITS[self.code], self.num_columns, signed=not self.code.startswith("u"))

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """See `StoredWeight`."""
        numbers = self._by_column()
        if self.inputs is not None or self.in_features != self.num_columns:
            at = torch.arange(self.num_columns, device=self.device) if self.inputs is None else self.inputs
            numbers = numbers.new_zeros((self.out_features, self.in_features)).index_copy_(1, at, numbers)
        if self.sparse is not None:
            counts = self.sparse.starts.diff()
            outputs = torch.repeat_interleave(torch.arange(self.out_features, device=self.device), counts)
            numbers.index_put_((outputs, self.sparse.inputs), self.sparse.values, accumulate=True)
        return numbers.to(dtype)

    def _by_column(self) -> torch.Tensor:
        """[N, K] float32, columns as they lie."""
        codes = self.codes()
        if self.table is None:
            values = codes.float()
        elif self.table.ndim == 1:
            values = self.table[codes.long()]
        else:
            values = self.table.gather(1, codes.long())
        of_column = torch.arange(self.num_columns, device=self.device) // self.group
        if self.zeros is not None:
            values = values - self.zeros.float()[:, of_column]
        values = values * self.scales.float()[:, of_column]
        return values if self.offsets is None else values + self.offsets[:, of_column]

    def rows(self, order: torch.Tensor) -> CodedWeight:
        """See `StoredWeight`. Outputs of zeros have a scale and an offset of 0."""
        return replace(
            self,
            # Codes of any kind: a byte as it lies.
            data=pick(self.data.view(torch.uint8), order, dim=0).view(self.data.dtype),
            scales=pick(self.scales, order, dim=0),
            zeros=_picked(self.zeros, order),
            offsets=_picked(self.offsets, order),
            table=_picked(self.table, order) if _num_dims(self.table) == 2 else self.table,
            sparse=_sparse_rows(self.sparse, order),
        )

    def columns(self, order: torch.Tensor) -> CodedWeight:
        """See `StoredWeight`. No code moves: each column is told its new input."""
        place = torch.empty(self.in_features, dtype=torch.int64)
        is_there = order >= 0
        place[order[is_there]] = is_there.nonzero().flatten()
        place = place.to(self.device)
        inputs = place[: self.num_columns] if self.inputs is None else place[self.inputs]
        sparse = None if self.sparse is None else self.sparse._replace(inputs=place[self.sparse.inputs])
        return replace(self, inputs=inputs, num_inputs=len(order), sparse=sparse)

    def some_inputs(self, start: int, stop: int) -> CodedWeight:
        """See `StoredWeight`. Cuts lie between groups, unless all columns are one."""
        if self.inputs is not None or self.in_features != self.num_columns:
            raise ValueError("its inputs are not in order (act-order), so that a part of them has no groups of its own")
        is_one_group = self.group >= self.num_columns
        if not is_one_group and (start % self.group or (stop % self.group and stop != self.num_columns)):
            raise ValueError(f"its inputs are in groups of {self.group}, which {start} and {stop} do not lie between")
        groups = slice(0, 1) if is_one_group else slice(start // self.group, -(-stop // self.group))
        codes = self.codes()[:, start:stop]
        return replace(
            self,
            data=codes.clone(memory_format=torch.contiguous_format) if self.code == "fp8" else pack_codes(codes, BITS[self.code]),
            num_columns=stop - start,
            num_inputs=None,
            group=min(self.group, stop - start),
            scales=self.scales[:, groups].contiguous(),
            zeros=None if self.zeros is None else self.zeros[:, groups].contiguous(),
            offsets=None if self.offsets is None else self.offsets[:, groups].contiguous(),
            sparse=_sparse_inputs(self.sparse, start, stop),
        )

    def joined(self, others: Sequence[StoredWeight]) -> StoredWeight:
        """See `StoredWeight`; dense numbers in float32 where formats differ."""
        alike = [other for other in others if isinstance(other, CodedWeight) and self._is_like(other)]
        if len(alike) < len(others):
            return DenseWeight(torch.cat([self.dense(torch.float32), *(other.dense(torch.float32) for other in others)]))
        return replace(
            self,
            data=torch.cat([one.data.view(torch.uint8) for one in (self, *alike)]).view(self.data.dtype),
            scales=torch.cat([one.scales for one in (self, *alike)]),
            zeros=_joined([one.zeros for one in (self, *alike)]),
            offsets=_joined([one.offsets for one in (self, *alike)]),
            table=_joined([one.table for one in (self, *alike)]) if _num_dims(self.table) == 2 else self.table,
        )

    def _is_like(self, other: CodedWeight) -> bool:
        """Whether both may share everything that is not of an output."""
        same = ("code", "num_columns", "num_inputs", "group", "activations")
        return (
            all(getattr(self, name) == getattr(other, name) for name in same)
            and all((getattr(self, name) is None) == (getattr(other, name) is None) for name in ("zeros", "offsets"))
            and self.scales.dtype == other.scales.dtype
            and self.sparse is None
            and other.sparse is None
            and all(_equal(getattr(self, name), getattr(other, name)) for name in ("inputs", "static_scale"))
            and (_equal(self.table, other.table) or (_num_dims(self.table) == 2 and _num_dims(other.table) == 2))
        )


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _num_dims(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.ndim


def _moved(tensor: torch.Tensor | None, device: torch.device) -> Any:
    return None if tensor is None else tensor.to(device)


def _picked(tensor: torch.Tensor | None, order: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else pick(tensor, order, dim=0)


def _joined(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def _sparse_rows(sparse: SparsePart | None, order: torch.Tensor) -> SparsePart | None:
    if sparse is None:
        return None
    counts, firsts = sparse.starts.diff().cpu(), sparse.starts[:-1].cpu()
    picked = pick(counts, order, dim=0)
    starts = torch.cat((picked.new_zeros(1), picked.cumsum(0)))
    taken = torch.repeat_interleave(pick(firsts, order, dim=0) - starts[:-1], picked) + torch.arange(int(starts[-1]))
    device = sparse.inputs.device
    return SparsePart(starts.to(device), sparse.inputs[taken.to(device)], sparse.values[taken.to(device)])


def _sparse_inputs(sparse: SparsePart | None, start: int, stop: int) -> SparsePart | None:
    if sparse is None:
        return None
    is_within = (sparse.inputs >= start) & (sparse.inputs < stop)
    before = torch.cat((sparse.starts.new_zeros(1), is_within.cumsum(0)))
    return SparsePart(before[sparse.starts], sparse.inputs[is_within] - start, sparse.values[is_within])
