"""FP8 as DeepSeek V3 and Qwen3 publish it: float8_e4m3fn with a scale for each block, or for each output, or for everything."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from compute_svc.models.config_fields import ConfigFields, shown
from compute_svc.models.quantised.coded_tensor import CodedTensor, RawReader
from compute_svc.models.quantised.fp8_codes import FP8, checked_codes
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.quantised.scale_grid import ScaleGrid
from compute_svc.models.quantised.schemes import block_sizes
from compute_svc.models.weights import CheckpointError, TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight

# Of weights: the second is what the first is called where it is not said to be what codes were divided by.
_SCALES = ("weight_scale_inv", "weight_scale")
_ACTIVATION_SCALES = ("input_scale", "activation_scale")
_UNREAD = ("input_scale_ub", "output_scale", "k_scale", "v_scale")


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    for name, known in (("fmt", ("e4m3", "float8_e4m3fn")), ("activation_scheme", ("dynamic", "static")), ("expert_dtype", ("fp8",))):
        if (value := fields.word(name)) is not None and value not in known:
            raise CheckpointError(f"{fields.place}: {name} {shown(value)} is not supported; supported: {', '.join(known)}")
    sizes = fields.get("weight_block_size")
    block = None if sizes is None else block_sizes(sizes, fields.place, "weight_block_size")
    is_static = fields.word("activation_scheme") == "static"
    modules = [module for module in modules_with("weight", tensors) if tensors[f"{module}.weight"].dtype == FP8]
    return {f"{module}.weight": _coded(Parts(module, tensors, fields.place), block, is_static=is_static) for module in modules}


def _coded(parts: Parts, block: tuple[int, int] | None, *, is_static: bool) -> CodedTensor:
    outputs, inputs = parts.shape("weight", FP8, dims=2)
    scale = _SCALES[1] if parts.has(_SCALES[1]) else _SCALES[0]
    rows, columns = block or (None, None)
    if block is None and parts.has(scale) and parts.shape_of(scale, *FLOATS, "F8_E8M0")[:1] == (outputs,):
        rows = 1
    grid = ScaleGrid.of((outputs, inputs), rows, columns)
    grid.require(parts, scale, *FLOATS, "F8_E8M0")
    static = next((name for name in _ACTIVATION_SCALES if parts.has(name)), _ACTIVATION_SCALES[0]) if is_static else None
    if static is not None:
        parts.require_one(static, *FLOATS)
    names = parts.present("weight", *_SCALES, *_ACTIVATION_SCALES, *_UNREAD)
    return CodedTensor((outputs, inputs), "FP8", names, partial(_read, parts, grid, scale, static), use="float8")


def _read(parts: Parts, grid: ScaleGrid, scale: str, static: str | None, raw: RawReader) -> CodedWeight:
    return CodedWeight(
        code="fp8",
        data=checked_codes(parts.read(raw, "weight"), parts, "weight"),
        num_columns=grid.inputs,
        group=grid.columns,
        scales=grid.spread(parts.numbers(raw, scale)),
        activations="fp8",
        static_scale=None if static is None else parts.number(raw, static),
    )
