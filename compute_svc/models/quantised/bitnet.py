"""BitNet b1.58: weights of -1, 0 and 1 with one scale; a byte holds those of four outputs, a quarter of all outputs apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import pack_codes

# Whether its scale is what products are divided by.
_CLASSES = {"bitlinear": True, "autobitlinear": False}


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    linear = fields.word("linear_class") or "bitlinear"
    if linear not in _CLASSES:
        raise CheckpointError(f"{fields.place}: linear_class {shown(linear)} is not supported; supported: {', '.join(_CLASSES)}")
    mode = fields.word("quantization_mode") or "offline"
    if mode != "offline":
        raise CheckpointError(
            f"{fields.place}: quantization_mode {shown(mode)} (weights that are rounded as they are used) is not supported"
        )
    if fields.flag("use_rms_norm", False):
        raise CheckpointError(f"{fields.place}: use_rms_norm (a norm in each projection) is not supported")
    modules = [module for module in modules_with("weight", tensors) if tensors[f"{module}.weight"].dtype == "U8"]
    return {f"{module}.weight": _coded(Parts(module, tensors, fields.place), divides=_CLASSES[linear]) for module in modules}


def _coded(parts: Parts, *, divides: bool) -> CodedTensor:
    rows, inputs = parts.shape("weight", "U8", dims=2)
    parts.require_one("weight_scale", *FLOATS)
    return CodedTensor((4 * rows, inputs), "ternary", parts.present("weight", "weight_scale"), partial(_read, parts, divides))


def _read(parts: Parts, divides: bool, raw: RawReader) -> CodedWeight:
    content = parts.read(raw, "weight")
    # One more than each weight.
    codes = torch.cat([(content >> shift) & 3 for shift in (0, 2, 4, 6)])
    if bool((codes == 3).any()):
        raise parts.error("weight", "holds codes that are none of -1, 0, 1")
    scale = parts.number(raw, "weight_scale")
    outputs, inputs = codes.shape
    return CodedWeight(
        code="int2",
        data=pack_codes(codes.view(torch.int8) - 1, 2),
        num_columns=inputs,
        group=inputs,
        scales=(1 / scale if divides else scale).expand(outputs, 1).contiguous(),
        activations="int8",
    )
