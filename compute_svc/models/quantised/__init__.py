"""Weights that published checkpoints store as codes, and how to read each way of storing them; knows no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised import awq, bitnet, bitsandbytes, compressed_tensors, fp8, gptq, quanto, squeezellm
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.weights import CheckpointError, TensorInfo, listed

_METHODS = {
    "awq": awq.coded_tensors,
    "bitnet": bitnet.coded_tensors,
    "bitsandbytes": bitsandbytes.coded_tensors,
    "compressed-tensors": compressed_tensors.coded_tensors,
    "fbgemm_fp8": fp8.coded_tensors,
    "fp8": fp8.coded_tensors,
    "gptq": gptq.coded_tensors,
    "quanto": quanto.coded_tensors,
    "squeezellm": squeezellm.coded_tensors,
}


def coded_tensors(section: Mapping[str, Any], tensors: Mapping[str, TensorInfo], place: str, raw: RawReader) -> dict[str, CodedTensor]:
    """Every weight that is stored as codes, by the name its family has for it.

    Args:
        section: config.json's quantization_config.
        tensors: What the files hold, by name.
        place: The file's path, for messages.
        raw: Reads a tensor as it is stored; at this time shapes and descriptions alone, at most a few kilobytes each.

    Raises:
        CheckpointError: Method, field or tensor is not read, or they do not fit each other.
    """
    fields = ConfigFields(dict(section), f"{place}: quantization_config")
    method = fields.word("quant_method")
    if method not in _METHODS:
        raise CheckpointError(
            f"{fields.place}: quant_method {shown(method)} is not supported; supported: {', '.join(_METHODS)}, or an unquantised checkpoint"
        )
    coded = _METHODS[method](fields, tensors, raw)
    twice = [name for name, weight in coded.items() if name in tensors and name not in weight.parts]
    if twice:
        raise CheckpointError(f"{place}: weights are stored both as codes and as numbers: {listed(twice)}")
    return coded
