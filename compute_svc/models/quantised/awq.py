"""AWQ as its GEMM kernel wants it: codes of four bits in words along the outputs, eight of them in the order of its lanes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.packing import less_zeros, unpacked_words
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import pack_codes

_BITS = 4
# Where in a word, from its lowest bits on, each of eight outputs lies.
_LANES = (0, 4, 1, 5, 2, 6, 3, 7)


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    bits = fields.count("bits" if "bits" in fields else "w_bit", _BITS)
    if bits != _BITS:
        raise CheckpointError(f"{fields.place}: bits is {bits}; AWQ of {_BITS} bits is read")
    for name in ("version", "format", "checkpoint_format"):
        layout = fields.word(name) or "gemm"
        if layout.lower() not in ("gemm", "awq"):
            raise CheckpointError(f"{fields.place}: {name} {shown(layout)} is not supported; supported: gemm")
    name = "group_size" if "group_size" in fields else "q_group_size"
    group = None if fields.get(name) in (-1, None) else fields.count(name)
    return {f"{module}.weight": _coded(Parts(module, tensors, fields.place), group) for module in modules_with("qweight", tensors)}


def _coded(parts: Parts, group: int | None) -> CodedTensor:
    inputs, words = parts.shape("qweight", "I32", dims=2)
    outputs = words * 32 // _BITS
    group = inputs if group is None else min(group, inputs)
    groups = -(-inputs // group)
    parts.require("scales", (groups, outputs), *FLOATS)
    parts.require("qzeros", (groups, words), "I32")
    return CodedTensor((outputs, inputs), "INT4", parts.present("qweight", "scales", "qzeros"), partial(_read, parts, group))


def _read(parts: Parts, group: int, raw: RawReader) -> CodedWeight:
    codes, zeros = (_by_output(parts.read(raw, part)) for part in ("qweight", "qzeros"))
    inputs = codes.shape[1]
    code, data, kept_zeros = less_zeros(pack_codes(codes, _BITS), zeros, _BITS, inputs)
    scales = parts.numbers(raw, "scales").t().clone(memory_format=torch.contiguous_format)
    return CodedWeight(code=code, data=data, num_columns=inputs, group=group, scales=scales, zeros=kept_zeros)


def _by_output(words: torch.Tensor) -> torch.Tensor:
    """[N, rows] uint8 of [rows, N / 8] words."""
    lanes = unpacked_words(words, _BITS, words.shape[1] * 8).view(len(words), -1, 8)
    return lanes[..., torch.tensor(_LANES)].flatten(1).t().contiguous()
