"""optimum-quanto, int8 and float8: codes of a tensor that is called `weight._data`, with a scale for each output.

Activations stay as they are, whatever the model was calibrated for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.fp8_codes import FP8, checked_codes
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.quantised.scale_grid import ScaleGrid
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight

_DATA, _SCALE = "weight._data", "weight._scale"


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    flat = modules_with("weight._data._data", tensors)
    if flat:
        raise CheckpointError(
            f"{fields.place}: {flat[0]} is stored by quanto as int4 or int2, whose files do not say the shape of a matrix; int8 and float8 are read"
        )
    return {f"{module}.weight": _coded(Parts(module, tensors, fields.place)) for module in modules_with(_DATA, tensors)}


def _coded(parts: Parts) -> CodedTensor:
    outputs, inputs = parts.shape(_DATA, "I8", FP8, dims=2)
    grid = ScaleGrid.of((outputs, inputs), 1, None)
    grid.require(parts, _SCALE, *FLOATS)
    kind = "INT8" if parts.dtype(_DATA) == "I8" else "FP8"
    return CodedTensor((outputs, inputs), kind, parts.present(_DATA, _SCALE, "input_scale", "output_scale"), partial(_read, parts, grid))


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
