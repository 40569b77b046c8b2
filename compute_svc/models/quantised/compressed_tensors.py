"""compressed-tensors, as llm-compressor writes it: integers in words or one by one, or FP8, all of them or two of each four."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch

from compute_svc.models.config_fields import ConfigFields
from compute_svc.models.quantised.coded_tensor import CodedTensor, CodeUse, RawReader
from compute_svc.models.quantised.fp8_codes import FP8, checked_codes
from compute_svc.models.quantised.packing import SIGNED, Codes, by_group, less_zeros, packed_words, unpacked_words, with_sign
from compute_svc.models.quantised.parts import FLOATS, Parts, modules_with
from compute_svc.models.quantised.scale_grid import ScaleGrid
from compute_svc.models.quantised.schemes import Scheme, Schemes
from compute_svc.models.quantised.two_of_four import require_two_of_four, two_of_four
from compute_svc.models.weights import TensorInfo
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import pack_codes
from compute_svc.stored_weights.dense_weight import DenseWeight

_PACKED = ("weight_packed", "weight_shape")
_TWO_OF_FOUR = ("compressed", "bitmask", "shape")
_QUANTISED = ("weight_scale", "weight_zero_point", "weight_g_idx")
# Of what is not computed so here: roundings of activations in other forms, and of caches.
_UNREAD = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
_UNREAD_BESIDE = tuple(f"{of}_{part}" for of in ("q", "k", "v") for part in ("scale", "zero_point"))

_PackedReader = Callable[[RawReader], Codes]


class _Stored(NamedTuple):
    """How one projection is stored.

    Attributes:
        parts: Its tensors.
        scheme: How it is coded.
        grid: How its scales lie.
    """

    parts: Parts
    scheme: Scheme
    grid: ScaleGrid


def coded_tensors(fields: ConfigFields, tensors: Mapping[str, TensorInfo], raw: RawReader) -> dict[str, CodedTensor]:
    """See `quantised.coded_tensors`."""
    schemes = Schemes(fields)
    coded: dict[str, CodedTensor] = {}
    hidden: set[str] = set()
    for module in _modules(tensors):
        parts = Parts(module, tensors, fields.place)
        one = _dense(parts, raw) if parts.has("compressed") and not parts.has("weight_scale") else _coded(parts, schemes.of(module), raw)
        beside = Parts(module.rpartition(".")[0], tensors, fields.place).present(*_UNREAD_BESIDE)
        names = (*one.parts, *(name for name in beside if name not in hidden))
        hidden.update(names)
        coded[f"{module}.weight"] = one._replace(parts=names)
    return coded


def _modules(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Projections that are stored as codes, or without zeros."""
    with_codes = [module for module in modules_with("weight", tensors) if tensors[f"{module}.weight"].dtype in ("I8", FP8)]
    return [*modules_with("weight_packed", tensors), *modules_with("compressed", tensors), *with_codes]


def _dense(parts: Parts, raw: RawReader) -> CodedTensor:
    """Numbers of which two of each four are there."""
    shape = require_two_of_four(parts, raw, *FLOATS)

    def read(raw: RawReader) -> DenseWeight:
        parts.numbers(raw, "compressed")
        return DenseWeight(two_of_four(parts, raw, shape))

    return CodedTensor(shape, "2:4", parts.present(*_TWO_OF_FOUR, *_UNREAD), read, use="numbers")


def _coded(parts: Parts, scheme: Scheme, raw: RawReader) -> CodedTensor:
    shape = _shape(parts, scheme, raw)
    rows, columns = {
        "tensor": (None, None),
        "channel": (1, None),
        "group": (1, scheme.group),
        "block": scheme.block or (None, None),
    }[scheme.strategy]
    grid = ScaleGrid.of(shape, rows, columns)
    grid.require(parts, "weight_scale", *FLOATS)
    _require_zeros(parts, scheme, grid)
    if parts.has("weight_g_idx"):
        parts.require("weight_g_idx", shape[1:], "I32", "I64")
    if scheme.has_static_scale:
        parts.require_one("input_scale", *FLOATS)
    kind = f"{'FP' if scheme.kind == 'float' else 'INT'}{scheme.bits}{' 2:4' if parts.has('compressed') else ''}"
    held = _TWO_OF_FOUR if parts.has("compressed") else _PACKED if parts.has("weight_packed") else ("weight",)
    use: CodeUse = "integers by int8" if scheme.activations == "int8" else "integers"
    if scheme.kind == "float":
        use = "float8" if scheme.activations == "fp8" else "numbers"
    elif scheme.has_static_scale:
        use = "numbers"
    return CodedTensor(shape, kind, parts.present(*held, *_QUANTISED, *_UNREAD), partial(_read, _Stored(parts, scheme, grid)), use)


def _shape(parts: Parts, scheme: Scheme, raw: RawReader) -> tuple[int, int]:
    """[N, K]."""
    stored = FP8 if scheme.kind == "float" else "I8"
    if parts.has("compressed"):
        return require_two_of_four(parts, raw, stored)
    if not parts.has("weight_packed"):
        outputs, inputs = parts.shape("weight", stored, dims=2)
        return outputs, inputs
    if scheme.kind == "float":
        raise parts.error("weight_packed", "holds words, config_groups say float")
    outputs, words = parts.shape("weight_packed", "I32", dims=2)
    parts.require("weight_shape", (2,), "I64", "I32")
    given = parts.read(raw, "weight_shape").tolist()
    if given[0] != outputs or given[1] < 1 or -(-given[1] * scheme.bits // 32) != words:
        raise parts.error("weight_shape", f"is {given}, which does not fit weight_packed of the shape {[outputs, words]}")
    return outputs, given[1]


def _require_zeros(parts: Parts, scheme: Scheme, grid: ScaleGrid) -> None:
    if not parts.has("weight_zero_point"):
        return
    if parts.dtype("weight_zero_point") == "I32" and parts.has("weight_packed"):
        rows, columns = grid.shape
        parts.require("weight_zero_point", (-(-rows * scheme.bits // 32), columns), "I32")
    else:
        grid.require(parts, "weight_zero_point", "I8", FP8)


def _read(stored: _Stored, raw: RawReader) -> CodedWeight:
    parts, scheme, grid = stored
    code, data, zeros = _fp8(stored, raw) if scheme.kind == "float" else _integers(stored, raw)
    order = None
    if parts.has("weight_g_idx"):
        groups = parts.read(raw, "weight_g_idx")
        # -1 everywhere = none.
        if not bool((groups == -1).all()):
            data, order = by_group(data, scheme.bits, groups, grid.columns, parts, "weight_g_idx")
    return CodedWeight(
        code=code,
        data=data,
        num_columns=grid.inputs,
        group=grid.columns,
        scales=grid.spread(parts.numbers(raw, "weight_scale")),
        zeros=zeros,
        inputs=order,
        activations=scheme.activations,
        static_scale=parts.number(raw, "input_scale") if scheme.has_static_scale else None,
    )


def _fp8(stored: _Stored, raw: RawReader) -> Codes:
    parts, _, grid = stored
    if parts.has("weight_zero_point") and bool(parts.read(raw, "weight_zero_point").float().any()):
        raise parts.error("weight_zero_point", "is not 0, which FP8 is not read with")
    if not parts.has("compressed"):
        return Codes("fp8", checked_codes(parts.read(raw, "weight"), parts, "weight"), None)
    return Codes("fp8", checked_codes(two_of_four(parts, raw, (grid.outputs, grid.inputs)), parts, "compressed"), None)


def _integers(stored: _Stored, raw: RawReader) -> Codes:
    parts, (_, bits, *_), grid = stored
    columns = grid.inputs
    zeros = _zeros(stored, raw)
    if parts.has("weight_packed"):
        packed = packed_words(parts.read(raw, "weight_packed"), bits, columns)
        if zeros is None:
            return Codes(SIGNED[bits], with_sign(packed, bits, columns), None)
        return less_zeros(packed, zeros, bits, columns)
    part = "compressed" if parts.has("compressed") else "weight"
    codes = two_of_four(parts, raw, (grid.outputs, columns)) if part == "compressed" else parts.read(raw, part)
    half = 1 << (bits - 1)
    if bits < 8 and bool(((codes < -half) | (codes >= half)).any()):
        raise parts.error(part, f"holds codes of more than {bits} bits")
    data = pack_codes(codes, bits).clone(memory_format=torch.contiguous_format)
    return Codes(SIGNED[bits], data, None if zeros is None else (zeros.short() - half).to(torch.int8))


def _zeros(stored: _Stored, raw: RawReader) -> torch.Tensor | None:
    """[N, G] uint8, of codes that are unsigned; None = half of their range everywhere."""
    parts, (_, bits, *_), grid = stored
    if not parts.has("weight_zero_point"):
        return None
    half = 1 << (bits - 1)
    zeros = parts.read(raw, "weight_zero_point")
    if zeros.dtype == torch.int32:
        unsigned = unpacked_words(zeros.t(), bits, grid.shape[0]).t()
    else:
        wide = zeros.float() + half
        if bool(((wide < 0) | (wide >= 2 * half)).any()):
            raise parts.error("weight_zero_point", f"holds numbers of more than {bits} bits")
        unsigned = wide.to(torch.uint8)
    return None if bool((unsigned == half).all()) else grid.spread(unsigned)
