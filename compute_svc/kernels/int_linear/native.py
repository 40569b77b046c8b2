"""The library's own."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.int_linear.packed import NativeWeight, PackedInts
from compute_svc.kernels.native import DTYPES, NativeLibrary
from compute_svc.kernels.native.library import load_library
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows

_POINTER, _NUMBER, _WEIGHT = ctypes.c_void_p, ctypes.c_int64, ctypes.POINTER(NativeWeight)
# As native/source/int_products.h has them.
_TILE, _BLOCK = 16, 32
_INPUTS_TOGETHER = 8
# `kTilesAtOnce` of native/source/int_vectors.h.
_TILES_AT_ONCE: dict[InstructionSet, int] = {"avx512_vnni": 2, "avx2": 1, "portable": 1}

# Types of arguments: what is given, its rows, weights, activation, what is added, result, dtype, threads.
_LINEAR = (_POINTER, _POINTER, _NUMBER, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)
_GATED_LINEAR = (_POINTER, _POINTER, _NUMBER, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _NUMBER, _NUMBER)

# Numbers of the activations: `Activation` of native/source/activations.h.
_ACTIVATIONS: dict[Activation, int] = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4, "sigmoid": 5}
_NORMED = (_POINTER, _NUMBER, _POINTER, ctypes.c_double)
_LINEAR_OF = (*_NORMED, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)
_MLP = (*_NORMED, _WEIGHT, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)


class _Functions(NamedTuple):
    linear: Callable[..., None]
    gated_linear: Callable[..., None]
    linear_of: Callable[..., None]
    mlp: Callable[..., None]


@cache
def _functions(built_for: InstructionSet) -> _Functions:
    library = load_library(built_for)
    return _Functions(
        linear=library.function("triserve_int_linear", _LINEAR),
        gated_linear=library.function("triserve_int_gated_linear", _GATED_LINEAR),
        linear_of=library.function("triserve_int_linear_of", _LINEAR_OF),
        mlp=library.function("triserve_int_mlp", _MLP),
    )


def pack_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    bias: torch.Tensor | None,
    library: NativeLibrary,
) -> PackedInts:
    """See the public function."""
    out_features, in_features = codes.shape
    zero_point = _zero_point(codes, bits, library)
    outputs, inputs = -(-out_features // _BLOCK) * _BLOCK, -(-in_features // _INPUTS_TOGETHER) * _INPUTS_TOGETHER
    # What is filled up counts for nothing: no output is asked for, and activations are filled up with zeros.
    filled = F.pad(codes, (0, inputs - in_features, 0, outputs - out_features))
    at_once = _TILES_AT_ONCE[library.instruction_set]
    tiles = filled.view(outputs // _TILE // at_once, at_once, _TILE, inputs // 4, 4).permute(0, 3, 1, 2, 4).contiguous()
    data = tiles.add_(zero_point - 256 if zero_point == 128 else zero_point).view(torch.uint8)
    if bits == 4:
        data = data[:, 0::2] | (data[:, 1::2] << 4)
    tiled = [None if part is None else _tile_groups(part.float(), outputs, at_once) for part in (scales, offsets)]
    assert tiled[0] is not None
    filled_bias = None if bias is None else F.pad(bias.float(), (0, outputs - out_features))
    packed = PackedInts("native", bits, group, in_features, out_features, data, tiled[0], tiled[1], filled_bias, library.instruction_set)
    native = packed.native
    native.data, native.scales = data.data_ptr(), tiled[0].data_ptr()
    native.offsets = None if tiled[1] is None else tiled[1].data_ptr()
    native.bias = None if filled_bias is None else filled_bias.data_ptr()
    native.columns, native.inputs, native.outputs = in_features, inputs, out_features
    native.group, native.groups = (group if group < in_features else inputs), scales.shape[1]
    native.bits, native.zero_point = bits, zero_point
    return packed


def _zero_point(codes: torch.Tensor, bits: int, library: NativeLibrary) -> int:
    """What is added to codes: halves of bytes have no sign, nor have the bytes of AVX-512's dot product."""
    if bits == 8:
        return 128 if library.instruction_set == "avx512_vnni" else 0
    return 8 if bool((codes < 0).any()) else 0


def _tile_groups(values: torch.Tensor, outputs: int, at_once: int) -> torch.Tensor:
    filled = F.pad(values, (0, 0, 0, outputs - len(values)))
    return filled.view(outputs // _TILE // at_once, at_once * _TILE, -1).transpose(1, 2).contiguous()


def int_linear(
    rows: QuantisedRows, weight: PackedInts, activation: Activation, add: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """See the public function; takes the native layout."""
    codes = _filled(rows.codes, weight)
    result = torch.empty((len(codes), weight.out_features), dtype=dtype)
    if add is not None:
        add = add.contiguous()
    _functions(weight.built_for).linear(
        codes.data_ptr(),
        rows.scales.data_ptr(),
        len(codes),
        weight.native,
        _ACTIVATIONS[activation],
        None if add is None else add.data_ptr(),
        result.data_ptr(),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return result


def int_gated_linear(rows: QuantisedRows, gate: PackedInts, up: PackedInts, activation: Activation, dtype: torch.dtype) -> torch.Tensor:
    """See the public function; takes the native layout."""
    codes = _filled(rows.codes, gate)
    result = torch.empty((len(codes), gate.out_features), dtype=dtype)
    _functions(gate.built_for).gated_linear(
        codes.data_ptr(),
        rows.scales.data_ptr(),
        len(codes),
        gate.native,
        up.native,
        _ACTIVATIONS[activation],
        result.data_ptr(),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return result


def int_linear_of(x: torch.Tensor, weight: PackedInts, norm: Norm | None, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the native layout."""
    x = x.contiguous()
    result = torch.empty((len(x), weight.out_features), dtype=x.dtype)
    if add is not None:
        add = add.contiguous()
    _functions(weight.built_for).linear_of(
        x.data_ptr(),
        len(x),
        None if norm is None else norm.weight.data_ptr(),
        0.0 if norm is None else norm.eps,
        weight.native,
        _ACTIVATIONS[activation],
        None if add is None else add.data_ptr(),
        result.data_ptr(),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return result


def int_mlp(
    x: torch.Tensor,
    gate: PackedInts | None,
    up: PackedInts,
    down: PackedInts,
    activation: Activation,
    norm: Norm | None,
    add: torch.Tensor | None,
) -> torch.Tensor:
    """See the public function; takes native layouts of one library."""
    x = x.contiguous()
    result = torch.empty((len(x), down.out_features), dtype=x.dtype)
    if add is not None:
        add = add.contiguous()
    _functions(up.built_for).mlp(
        x.data_ptr(),
        len(x),
        None if norm is None else norm.weight.data_ptr(),
        0.0 if norm is None else norm.eps,
        None if gate is None else gate.native,
        up.native,
        down.native,
        _ACTIVATIONS[activation],
        None if add is None else add.data_ptr(),
        result.data_ptr(),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return result


def _filled(codes: torch.Tensor, weight: PackedInts) -> torch.Tensor:
    missing = weight.native.inputs - weight.in_features
    return F.pad(codes, (0, missing)) if missing else codes.contiguous()
