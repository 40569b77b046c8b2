"""Which number format a model is computed in, and what it then takes of memory. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

import torch

from compute_svc.models.quantised.coded_tensor import CodeUse
from compute_svc.models.weights import READABLE_DTYPES, CheckpointError, TensorInfo

DtypeName = Literal["float32", "bfloat16"]
DTYPES: dict[DtypeName, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class NumberFormat(NamedTuple):
    """A format and why it was chosen, for the log."""

    name: DtypeName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """As torch calls it."""
        return DTYPES[self.name]


def choose_format(
    wanted: Literal["auto"] | DtypeName, stored: Mapping[str, int], *, device: str, multiplies_bfloat16: bool
) -> NumberFormat:
    """The format of weights, activations and KV.

    Args:
        wanted: The setting.
        stored: How many numbers the checkpoint's files hold of each dtype, as they name them, or as codes.
        device: For the reason.
        multiplies_bfloat16: Whether the device is made for products of bfloat16.
    """
    if wanted != "auto":
        slow = wanted == "bfloat16" and not multiplies_bfloat16
        return NumberFormat(
            wanted, f"as COMPUTE_DTYPE says{f', though this {device} has no instructions for it and is slow' if slow else ''}"
        )
    # What codes stand for is rounded to whatever the rest is computed in.
    numbers = {name: count for name, count in stored.items() if name in READABLE_DTYPES}
    most = max(numbers, key=lambda name: numbers[name], default="F32")
    if most == "BF16" and multiplies_bfloat16:
        return NumberFormat("bfloat16", "as the weights are stored")
    if most == "BF16":
        return NumberFormat("float32", f"widened from bfloat16: this {device} has no instructions for products of that")
    return NumberFormat("float32", "as the weights are stored" if most == "F32" else f"which holds every {most} number of use")


def memory_of(tensors: Mapping[str, TensorInfo], dtype: torch.dtype, kept: Collection[CodeUse]) -> int:
    """Bytes of the weights in memory.

    Args:
        tensors: What the files hold.
        dtype: What numbers are converted to.
        kept: The codes that stay as they are; others are made dense.
    """
    return sum(
        info.coded_bytes if info.coded_bytes and info.use in kept else math.prod(info.shape) * dtype.itemsize for info in tensors.values()
    )


def require_room(weight_bytes: int, format_: NumberFormat, kv_cache_bytes: int, usable_bytes: int | None) -> str | None:
    """Refuses a model that cannot fit.

    Args:
        weight_bytes: Of the weights in memory.
        format_: Of those that are numbers.
        kv_cache_bytes: For keys and values.
        usable_bytes: Memory this process may have; None = unknown.

    Returns:
        A warning if weights and KV together do not fit, though each does; KV enters memory as it is used.

    Raises:
        CheckpointError: The weights alone do not fit.
        ValueError: The KV alone does not; names the variable.
    """
    if usable_bytes is None:
        return None
    if weight_bytes > usable_bytes:
        raise CheckpointError(f"the weights take {weight_bytes} bytes in {format_.name}, this process may have {usable_bytes}")
    if kv_cache_bytes > usable_bytes:
        raise ValueError(f"COMPUTE_KV_CACHE_BYTES is {kv_cache_bytes}, the limit is the memory this process may have, {usable_bytes}")
    if weight_bytes + kv_cache_bytes > usable_bytes:
        return (
            f"weights of {weight_bytes} bytes and COMPUTE_KV_CACHE_BYTES of {kv_cache_bytes} are more than the {usable_bytes} bytes "
            "this process may have: it will be killed when the KV cache fills up"
        )
    return None
