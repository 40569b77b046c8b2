"""A checkpoint that is a few tensors in memory, read as files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.models.quantised import coded_tensors
from compute_svc.models.weights import TensorInfo
from compute_svc.stored_weights.stored_weight import StoredWeight

_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def infos_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorInfo]:
    """What files would say of them."""
    return {name: TensorInfo(tuple(tensor.shape), _NAMES[tensor.dtype]) for name, tensor in tensors.items()}


def read_coded(section: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, StoredWeight]:
    """Every weight that is stored as codes; each is what was said of it before it was read."""
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    weights = {}
    for name, coded in coded_tensors(section, infos_of(tensors), "config.json", tensors.__getitem__).items():
        weight = coded.read(tensors.__getitem__)
        assert (weight.out_features, weight.in_features) == coded.shape
        assert set(coded.parts) <= tensors.keys()
        weights[name] = weight
    for name, tensor in tensors.items():
        same = torch.equal(_bytes(tensor), _bytes(before[name]))
        assert same, f"{name} was changed: files are mapped for reading alone"
    return weights


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def read_one(section: Mapping[str, Any], parts: Mapping[str, torch.Tensor]) -> StoredWeight:
    """The weight that these are the parts of."""
    weights = read_coded(section, {f"layer.proj.{part}": tensor for part, tensor in parts.items()})
    assert list(weights) == ["layer.proj.weight"]
    return weights["layer.proj.weight"]


def assert_is(weight: StoredWeight, numbers: npt.NDArray[Any]) -> None:
    """Checks a weight's numbers bit for bit, but for the sign of zeros."""
    np.testing.assert_array_equal(weight.dense(torch.float32).numpy(), numbers)
