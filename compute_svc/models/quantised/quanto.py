"""optimum-quanto: int8 and float8 with a scale for each output; int4 and int2 in groups, whose tensors do not say a matrix's shape.

It follows from the model's width: a projection takes hidden states or makes them, by its name. Whoever loads the model compares the shape with what
the model has, so that a wrong guess is refused. Activations stay as they are, whatever the model was calibrated for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.fp8_codes import FP8, checked_codes
from compute_svc.models.quantised.packing import UNSIGNED
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.quantised.scale_grid import ScaleGrid
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import pack_codes

_DATA, _FLAT, _SCALE, _SHIFT = "weight._data", "weight._data._data", "weight._scale", "weight._shift"
_UNREAD = ("input_scale", "output_scale")
# What families call the projections that make hidden states.
_TO_HIDDEN = frozenset({"o_proj", "down_proj", "out_proj", "dense", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "wo", "w2"})


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    coded = {f"{module}.weight": _coded(Parts(module, tensors, fields.place)) for module in modules_with(_DATA, tensors)}
    flat = modules_with(_FLAT, tensors)
    width = _hidden_size(tensors, fields.place) if flat else 0
    return coded | {f"{module}.weight": _coded_flat(Parts(module, tensors, fields.place), width) for module in flat}


def _coded(parts: Parts) -> CodedTensor:
    outputs, inputs = parts.shape(_DATA, "I8", FP8, dims=2)
    grid = ScaleGrid.of((outputs, inputs), 1, None)
    grid.require(parts, _SCALE, *FLOATS)
    names, read = parts.present(_DATA, _SCALE, *_UNREAD), partial(_read, parts, grid)
    if parts.dtype(_DATA) == "I8":
        return CodedTensor((outputs, inputs), "INT8", names, read)
    return CodedTensor((outputs, inputs), "FP8", names, read, use="numbers")


def _read(parts: Parts, grid: ScaleGrid, raw: RawReader) -> CodedWeight:
    codes = parts.read(raw, _DATA)
    is_float = codes.dtype.is_floating_point
    return CodedWeight(
        code="fp8" if is_float else "int8",
        data=checked_codes(codes, parts, _DATA) if is_float else codes.view(torch.uint8).clone(memory_format=torch.contiguous_format),
        num_columns=grid.inputs,
        group=grid.columns,
        scales=grid.spread(parts.numbers(raw, _SCALE)),
    )


def _hidden_size(tensors: Mapping[str, TensorInfo], place: str) -> int:
    """Columns of the embedding, which is the longest matrix of numbers."""
    weights = [info for name, info in tensors.items() if name.endswith(".weight")]
    matrices = [info.shape for info in weights if len(info.shape) == 2 and info.dtype in FLOATS]
    width = max(matrices, default=(0, 0))[1]
    if not width:
        raise CheckpointError(
            f"{place}: quanto's int4 and int2 do not say the shapes of matrices, and there is no embedding whose width would"
        )
    return width


def _coded_flat(parts: Parts, width: int) -> CodedTensor:
    packed_rows, group = parts.shape(_FLAT, "U8", dims=2)
    rows, _ = parts.shape(_SCALE, *FLOATS, dims=2)
    parts.require(_SCALE, (rows, 1), *FLOATS)
    parts.require(_SHIFT, (rows, 1), *FLOATS, "I8")
    bits = next((bits for bits in (4, 2) if packed_rows == -(-rows * bits // 8)), None)
    count = rows * group
    inputs = count // width if parts.module.rpartition(".")[2] in _TO_HIDDEN else width
    if bits is None or rows < 3 or not inputs or count % inputs or inputs % group:
        raise parts.error(_FLAT, f"of the shape {[packed_rows, group]} does not fit {rows} scales and hidden states of {width}")
    shape = (count // inputs, inputs)
    return CodedTensor(shape, f"INT{bits}", parts.present(_FLAT, _SCALE, _SHIFT, *_UNREAD), partial(_read_flat, parts, shape, bits, group))


def _read_flat(parts: Parts, shape: tuple[int, int], bits: int, group: int, raw: RawReader) -> CodedWeight:
    content, scales, shift = parts.read(raw, _FLAT), parts.numbers(raw, _SCALE), parts.numbers(raw, _SHIFT)
    # A byte holds codes of groups that are far apart: the lowest bits those of the first groups.
    codes = torch.cat([(content >> at) & ((1 << bits) - 1) for at in range(0, 8, bits)])[: len(scales)]
    outputs = shape[0]
    shift = shift.view(outputs, -1)
    is_float = shift.is_floating_point()
    return CodedWeight(
        code=UNSIGNED[bits],
        data=pack_codes(codes.reshape(shape), bits),
        num_columns=shape[1],
        group=group,
        scales=scales.view(outputs, -1).clone(),
        zeros=None if is_float else shift.clone(),
        offsets=-shift.float() if is_float else None,
    )
