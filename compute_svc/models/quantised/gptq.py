"""GPTQ: codes of eight, four or two bits in words along the inputs, zeros and scales by group, groups by activation if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.packing import by_group, less_zeros, packed_words, unpacked_words
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight

_BITS = (2, 4, 8)
# Added to a whole word: one to each code. The oldest layout stores zeros less one, subtracted from whole words by today's writers.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
_LAYOUTS = ("gptq", "gptq_v2")


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    bits = fields.count("bits")
    if bits not in _BITS:
        raise CheckpointError(f"{fields.place}: bits is {bits}; GPTQ of {', '.join(map(str, _BITS))} bits is read")
    group = fields.get("group_size")
    group = None if group in (-1, None) else fields.count("group_size")
    layout = fields.word("checkpoint_format") or fields.word("format") or "gptq"
    if layout not in _LAYOUTS:
        raise CheckpointError(f"{fields.place}: checkpoint_format {shown(layout)} is not supported; supported: {', '.join(_LAYOUTS)}")
    if fields.flag("is_marlin_format", False):
        raise CheckpointError(f"{fields.place}: is_marlin_format is not supported; use the checkpoint that it was made of")
    overrides = fields.get("dynamic")
    if overrides and not (isinstance(overrides, dict) and all(pattern.startswith("-:") for pattern in overrides)):
        raise CheckpointError(f"{fields.place}: dynamic gives some projections another form, which is not supported")
    coded = {}
    for module in modules_with("qweight", tensors):
        coded[f"{module}.weight"] = _coded(Parts(module, tensors, fields.place), bits, group, less_one=layout == "gptq")
    return coded


def _coded(parts: Parts, bits: int, group: int | None, *, less_one: bool) -> CodedTensor:
    words, outputs = parts.shape("qweight", "I32", dims=2)
    inputs = words * 32 // bits
    group = inputs if group is None else min(group, inputs)
    groups = -(-inputs // group)
    parts.require("scales", (groups, outputs), *FLOATS)
    parts.require("qzeros", (groups, -(-outputs * bits // 32)), "I32")
    if parts.has("g_idx"):
        parts.require("g_idx", (inputs,), "I32", "I64")
    names = parts.present("qweight", "scales", "qzeros", "g_idx")
    return CodedTensor((outputs, inputs), f"INT{bits}", names, partial(_read, parts, bits, group, less_one))


def _read(parts: Parts, bits: int, group: int, less_one: bool, raw: RawReader) -> CodedWeight:
    words = parts.read(raw, "qweight")
    inputs, outputs = words.shape[0] * 32 // bits, words.shape[1]
    packed = packed_words(words.t(), bits, inputs)
    order = None
    if parts.has("g_idx"):
        packed, order = by_group(packed, bits, parts.read(raw, "g_idx"), group, parts, "g_idx")
    zero_words = parts.read(raw, "qzeros")
    if less_one:
        zero_words = zero_words + torch.tensor(_ONES[bits], dtype=torch.int32)
    zeros = unpacked_words(zero_words, bits, outputs).t().contiguous()
    code, data, kept_zeros = less_zeros(packed, zeros, bits, inputs)
    scales = parts.numbers(raw, "scales").t().clone(memory_format=torch.contiguous_format)
    return CodedWeight(code=code, data=data, num_columns=inputs, group=group, scales=scales, zeros=kept_zeros, inputs=order)
