"""The tensors that one projection is made of in a file: their names, shapes and dtypes, looked at before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from compute_svc.models.quantised.coded_tensor import RawReader
from compute_svc.models.weights import CheckpointError, TensorInfo

FLOATS = ("F16", "BF16", "F32")

# A code of eight bits times a scale stays finite in float32, and so does what is added to it.
_LARGEST_NUMBER = 2.0**100


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one projection.

    Attributes:
        module: What their names begin with: "model.layers.0.self_attn.q_proj".
        tensors: All of the checkpoint, by name.
        place: Where they are, for messages.
    """

    module: str
    tensors: Mapping[str, TensorInfo]
    place: str

    def name(self, part: str) -> str:
        """The whole name of a part."""
        return f"{self.module}.{part}"

    def has(self, part: str) -> bool:
        """Whether there is such a tensor."""
        return self.name(part) in self.tensors

    def present(self, *parts: str) -> tuple[str, ...]:
        """The whole names of those that are there."""
        return tuple(self.name(part) for part in parts if self.has(part))

    def dtype(self, part: str) -> str:
        """Of a tensor that is there."""
        return self.tensors[self.name(part)].dtype

    def shape_of(self, part: str, *dtypes: str) -> tuple[int, ...]:
        """Of a tensor that must be there, in one of these dtypes. Raises CheckpointError if it is not."""
        return self._info(part, dtypes).shape

    def shape(self, part: str, *dtypes: str, dims: int) -> tuple[int, ...]:
        """Of a tensor that must be there, in one of these dtypes, with so many dimensions, none of them empty.

        Raises:
            CheckpointError: It is not so.
        """
        info = self._info(part, dtypes)
        if len(info.shape) != dims or 0 in info.shape:
            raise self.error(part, f"has the shape {list(info.shape)}, it must have {dims} dimensions, none empty")
        return info.shape

    def require(self, part: str, shape: Sequence[int], *dtypes: str) -> None:
        """Checks that a tensor is there, in one of these dtypes and exactly this shape. Raises CheckpointError if not."""
        info = self._info(part, dtypes)
        if info.shape != tuple(shape):
            raise self.error(part, f"has the shape {list(info.shape)}, it must be {list(shape)}")

    def require_one(self, part: str, *dtypes: str) -> None:
        """Checks that a tensor is there, in one of these dtypes, and holds one number. Raises CheckpointError if not."""
        if self._info(part, dtypes).shape not in ((), (1,), (1, 1)):
            raise self.error(part, f"has the shape {list(self._info(part, dtypes).shape)}, it must be one number")

    def error(self, part: str, problem: str) -> CheckpointError:
        """What is wrong with a tensor."""
        return CheckpointError(f"{self.place}: tensor {self.name(part)} {problem}")

    def read(self, raw: RawReader, part: str) -> torch.Tensor:
        """A tensor as it is stored; must be there."""
        return raw(self.name(part))

    def numbers(self, raw: RawReader, part: str) -> torch.Tensor:
        """A tensor of scales, offsets or values, which must be finite and of a sensible size; as it is stored, F8_E8M0 as float32.

        Raises:
            CheckpointError: They are not.
        """
        tensor = self.read(raw, part)
        if tensor.dtype == torch.float8_e8m0fnu:
            tensor = tensor.float()
        # Of what is not a number no comparison holds.
        if not bool((tensor.float().abs() <= _LARGEST_NUMBER).all()):
            raise self.error(part, "holds numbers that are not finite or above 2^100")
        return tensor

    def number(self, raw: RawReader, part: str) -> torch.Tensor:
        """One number above 0 by which one may divide, float32 of no dimensions. Raises CheckpointError if it is not so."""
        number = self.numbers(raw, part).float().reshape(())
        if not bool(number >= 1 / _LARGEST_NUMBER):
            raise self.error(part, f"is {float(number)}, it must be above 0 and from 2^-100 to 2^100")
        return number.clone()

    def _info(self, part: str, dtypes: tuple[str, ...]) -> TensorInfo:
        info = self.tensors.get(self.name(part))
        if info is None:
            raise CheckpointError(f"{self.place}: tensor {self.name(part)} is missing")
        if info.dtype not in dtypes:
            raise self.error(part, f"is stored as {info.dtype}; supported: {', '.join(dtypes)}")
        return info


def modules_with(part: str, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Names of the projections that have such a part."""
    return [name.removesuffix(f".{part}") for name in tensors if name.endswith(f".{part}")]
