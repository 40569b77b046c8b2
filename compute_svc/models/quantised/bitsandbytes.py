"""bitsandbytes: NF4 and FP4 in blocks of the whole matrix, their scales perhaps coded themselves; int8 with a scale for each output.

Activations stay as they are with int8: the library rounds most of them and splits off outliers, which is a way to come near this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import torch

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import pack_codes

_KINDS = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__{}"
_LONGEST_STATE = 4096
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_PARTS = ("weight.nested_absmax", "weight.nested_quant_map")
# Of words of any dtype, which are bytes.
_BYTES_EACH = {"U8": 1, "I8": 1, "F16": 2, "BF16": 2, "F32": 4}
# Columns that must share a scale: with fewer of them scales would take more room than codes.
_SMALLEST_GROUP = 8


class _State(NamedTuple):
    """What is written of a matrix of four bits.

    Attributes:
        shape: [N, K].
        block: Numbers of it, row by row, that share a scale.
        nested_block: Scales that share a scale; None = they are numbers.
        offset: Of such scales.
    """

    shape: tuple[int, int]
    block: int
    nested_block: int | None
    offset: float


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    coded = {}
    for kind in _KINDS:
        for module in modules_with(_STATE.format(kind), tensors):
            coded[f"{module}.weight"] = _four_bits(Parts(module, tensors, fields.place), kind, raw)
    for module in modules_with("SCB", tensors):
        coded[f"{module}.weight"] = _int8(Parts(module, tensors, fields.place), raw)
    return coded


def _four_bits(parts: Parts, kind: str, raw: RawReader) -> CodedTensor:
    state = _read_state(parts, _STATE.format(kind), kind, raw)
    count = math.prod(state.shape)
    each = _BYTES_EACH.get(parts.dtype("weight"), 1) if parts.has("weight") else 1
    parts.require("weight", (-(-count // (2 * each)), 1), *_BYTES_EACH)
    parts.require("weight.quant_map", (16,), "F32")
    blocks = -(-count // state.block)
    parts.require("weight.absmax", (blocks,), "F32" if state.nested_block is None else "U8")
    if state.nested_block is not None:
        parts.require("weight.nested_absmax", (-(-blocks // state.nested_block),), "F32")
        parts.require("weight.nested_quant_map", (256,), "F32")
    names = parts.present("weight", "weight.absmax", "weight.quant_map", *_NESTED_PARTS, _STATE.format(kind))
    return CodedTensor(state.shape, kind.upper(), names, partial(_read_four_bits, parts, state), use="numbers")


def _read_state(parts: Parts, part: str, kind: str, raw: RawReader) -> _State:
    """Reads the description of a matrix, which is JSON in a tensor of bytes."""
    (length,) = parts.shape(part, "U8", dims=1)
    if length > _LONGEST_STATE:
        raise parts.error(part, f"has {length} bytes, the limit is {_LONGEST_STATE}")
    try:
        content = json.loads(bytes(parts.read(raw, part).tolist()))
    except (ValueError, RecursionError) as error:
        raise parts.error(part, f"is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise parts.error(part, "must be a JSON object")
    fields = ConfigFields(content, f"{parts.place}: tensor {parts.name(part)}")
    shape, block = fields.get("shape"), fields.count("blocksize")
    if fields.word("quant_type") != kind:
        raise CheckpointError(f"{fields.place}: quant_type is {shown(fields.get('quant_type'))}, the tensor's name says {kind}")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and 0 < size < 1 << 32 for size in shape):
        raise CheckpointError(f"{fields.place}: shape is {shown(shape)}, it must list two sizes of at least 1")
    if block not in _BLOCKS or math.gcd(shape[1], block) < _SMALLEST_GROUP:
        raise CheckpointError(
            f"{fields.place}: blocksize {block} is not supported for rows of {shape[1]}; powers of two from 32 to 4096 are"
        )
    is_nested = parts.has("weight.nested_absmax")
    offset = fields.get("nested_offset") if is_nested else 0.0
    if type(offset) not in (int, float) or not abs(offset) < 1e30:
        raise CheckpointError(f"{fields.place}: nested_offset is {shown(offset)}, it must be a number")
    nested_block = fields.count("nested_blocksize") if is_nested else None
    return _State((shape[0], shape[1]), block, nested_block, float(offset))


def _read_four_bits(parts: Parts, state: _State, raw: RawReader) -> CodedWeight:
    outputs, inputs = state.shape
    # Rows are not whole blocks everywhere, but what a row and a block have in common is the same number of columns.
    group = math.gcd(inputs, state.block)
    first = torch.arange(outputs)[:, None] * inputs + torch.arange(0, inputs, group)
    return CodedWeight(
        code="uint4",
        data=_packed(parts.read(raw, "weight"), state.shape),
        num_columns=inputs,
        group=group,
        scales=_scales(parts, state, raw)[first // state.block],
        table=parts.numbers(raw, "weight.quant_map").clone(),
    )


def _packed(words: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """[N, ceil(K / 2)], the first code of a byte in its lower half; in the file it is in the upper one."""
    outputs, inputs = shape
    content = words.contiguous().flatten().view(torch.uint8)
    if inputs % 2 == 0:
        content = content[: outputs * inputs // 2].view(outputs, -1)
        return (content << 4) | (content >> 4)
    codes = torch.stack((content >> 4, content & 15), dim=-1).flatten()
    return pack_codes(codes[: outputs * inputs].view(shape), 4)


def _scales(parts: Parts, state: _State, raw: RawReader) -> torch.Tensor:
    """[blocks] float32."""
    if state.nested_block is None:
        return parts.numbers(raw, "weight.absmax")
    codes = parts.read(raw, "weight.absmax").long()
    values = parts.numbers(raw, "weight.nested_quant_map")[codes]
    factors = parts.numbers(raw, "weight.nested_absmax")[torch.arange(len(codes)) // state.nested_block]
    scales = values * factors + state.offset
    if not bool(scales.isfinite().all()):
        raise parts.error("weight.nested_absmax", "holds numbers that make scales infinite")
    return scales


def _int8(parts: Parts, raw: RawReader) -> CodedTensor:
    outputs, inputs = parts.shape("weight", "I8", dims=2)
    parts.require("SCB", (outputs,), *FLOATS)
    if parts.has("weight_format"):
        parts.require_one("weight_format", "U8")
        layout = int(parts.read(raw, "weight_format").reshape(()))
        if layout:
            raise parts.error("weight_format", f"is {layout}, a layout of GPUs; only 0, rows, is read")
    return CodedTensor((outputs, inputs), "INT8", parts.present("weight", "SCB", "weight_format"), partial(_read_int8, parts))


def _read_int8(parts: Parts, raw: RawReader) -> CodedWeight:
    data = parts.read(raw, "weight").view(torch.uint8).clone(memory_format=torch.contiguous_format)
    # What stands for 127.
    scales = parts.numbers(raw, "SCB").float()[:, None] / 127
    return CodedWeight(code="int8", data=data, num_columns=data.shape[1], group=data.shape[1], scales=scales)
