"""Weights that published checkpoints store as codes, and how to read each way of storing them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.weights import CheckpointError, TensorInfo


def coded_tensors(section: Mapping[str, Any], tensors: Mapping[str, TensorInfo], place: str, raw: RawReader) -> dict[str, CodedTensor]:
    """Every weight that is stored as codes, by the name its family has for it.

    Args:
        section: config.json's quantization_config.
        tensors: What the files hold, by name.
        place: The file's path, for messages.
        raw: Reads small tensors that say what the others are.

    Raises:
        CheckpointError: Method, field or tensor is not read, or they do not fit each other.
    """
    raise CheckpointError(f"{place}: quantization_config ({section.get('quant_method')}) is not supported; use an unquantised checkpoint")
