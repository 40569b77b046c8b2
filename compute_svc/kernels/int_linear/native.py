"""The library's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.int_linear.packed import PackedInts
from compute_svc.kernels.native import DTYPES, NativeLibrary
from compute_svc.kernels.native.arguments import ACTIVATIONS, added, normed_rows, pointer
from compute_svc.kernels.native.int_weight import INT_GATED_LINEAR, INT_LINEAR, INT_LINEAR_OF, INT_MLP, tile_weight
from compute_svc.kernels.native.library import load_library
from compute_svc.kernels.quantise_rows import Norm, QuantisedRows


class _Functions(NamedTuple):
    linear: Callable[..., None]
    gated_linear: Callable[..., None]
    linear_of: Callable[..., None]
    mlp: Callable[..., None]


@cache
def _functions(built_for: InstructionSet) -> _Functions:
    library = load_library(built_for)
    return _Functions(
        linear=library.function("triserve_int_linear", INT_LINEAR),
        gated_linear=library.function("triserve_int_gated_linear", INT_GATED_LINEAR),
        linear_of=library.function("triserve_int_linear_of", INT_LINEAR_OF),
        mlp=library.function("triserve_int_mlp", INT_MLP),
    )


def pack_ints(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows_in_groups: bool,
    library: NativeLibrary,
) -> PackedInts:
    """See the public function."""
    tiled = tile_weight(codes, bits, group, scales, offsets, bias, rows_in_groups, library.instruction_set)
    return PackedInts(
        layout="native",
        bits=bits,
        group=group,
        in_features=codes.shape[1],
        out_features=codes.shape[0],
        data=tiled.data,
        scales=tiled.scales,
        offsets=tiled.offsets,
        bias=tiled.bias,
        rows_in_groups=rows_in_groups,
        built_for=library.instruction_set,
        native=tiled.native,
    )


def int_linear(
    rows: QuantisedRows, weight: PackedInts, activation: Activation, add: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """See the public function; takes the native layout."""
    codes = _filled(rows.codes, weight)
    result = torch.empty((codes.shape[0], weight.out_features), dtype=dtype)
    add = added(add, result)
    _functions(weight.built_for).linear(
        codes.data_ptr(),
        rows.scales.data_ptr(),
        rows.scales.shape[1],
        codes.shape[0],
        weight.native,
        ACTIVATIONS[activation],
        pointer(add),
        result.data_ptr(),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return result


def int_gated_linear(rows: QuantisedRows, gate: PackedInts, up: PackedInts, activation: Activation, dtype: torch.dtype) -> torch.Tensor:
    """See the public function; takes the native layout."""
    codes = _filled(rows.codes, gate)
    result = torch.empty((codes.shape[0], gate.out_features), dtype=dtype)
    _functions(gate.built_for).gated_linear(
        codes.data_ptr(),
        rows.scales.data_ptr(),
        rows.scales.shape[1],
        codes.shape[0],
        gate.native,
        up.native,
        ACTIVATIONS[activation],
        result.data_ptr(),
        DTYPES[dtype],
        torch.get_num_threads(),
    )
    return result


def int_linear_of(x: torch.Tensor, weight: PackedInts, norm: Norm | None, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function; takes the native layout."""
    x = x.contiguous()
    result = torch.empty((x.shape[0], weight.out_features), dtype=x.dtype)
    add = added(add, result)
    _functions(weight.built_for).linear_of(
        *normed_rows(x, norm),
        weight.native,
        ACTIVATIONS[activation],
        pointer(add),
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
    result = torch.empty((x.shape[0], down.out_features), dtype=x.dtype)
    add = added(add, result)
    _functions(up.built_for).mlp(
        *normed_rows(x, norm),
        None if gate is None else gate.native,
        up.native,
        down.native,
        ACTIVATIONS[activation],
        pointer(add),
        result.data_ptr(),
        DTYPES[x.dtype],
        torch.get_num_threads(),
    )
    return result


def _filled(codes: torch.Tensor, weight: PackedInts) -> torch.Tensor:
    missing = weight.native.inputs - weight.in_features
    return F.pad(codes, (0, missing)) if missing else codes.contiguous()
