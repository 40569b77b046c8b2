"""The native library's products of floats: one order of sums for any number of rows, so that one row costs what it reads and no more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch

from compute_svc.kernels.cpu_features import InstructionSet, multiplies_tiles
from compute_svc.kernels.linear.weight import Activation, LinearWeight
from compute_svc.kernels.native import DTYPES, native_library
from compute_svc.kernels.native.arguments import ACTIVATIONS, added, normed_rows, pointer
from compute_svc.kernels.native.float_weight import FLOAT_GATED_LINEAR, FLOAT_LINEAR, FLOAT_MLP, PanelWeight, panel_weight
from compute_svc.kernels.native.library import load_library
from compute_svc.kernels.quantise_rows import Norm as RowNorm


class _Functions(NamedTuple):
    linear: Callable[..., None]
    gated_linear: Callable[..., None]
    mlp: Callable[..., None]


@cache
def _functions(built_for: InstructionSet) -> _Functions:
    library = load_library(built_for)
    return _Functions(
        linear=library.function("triserve_float_linear", FLOAT_LINEAR),
        gated_linear=library.function("triserve_float_gated_linear", FLOAT_GATED_LINEAR),
        mlp=library.function("triserve_float_mlp", FLOAT_MLP),
    )


def takes_floats(dtype: torch.dtype) -> bool:
    """Whether the library multiplies weights of this dtype here: where it has vectors, and oneDNN no tiles of bfloat16 (AMX)."""
    library = native_library()
    if library is None or library.instruction_set == "portable" or dtype not in DTYPES:
        return False
    return dtype == torch.float32 or not multiplies_tiles()


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight whose dtype `takes_floats` says yes of."""
    library = native_library()
    assert library is not None, "the caller has asked"
    panels = panel_weight(weight, bias, library.instruction_set)
    return LinearWeight("panels", panels.data, bias, in_features=weight.shape[1], out_features=weight.shape[0], panels=panels)


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None, norm: RowNorm | None) -> torch.Tensor:
    """See the public function."""
    panels, x = _panels(weight), x.contiguous()
    result = torch.empty((x.shape[0], weight.out_features), dtype=_dtype(x, weight))
    add = added(add, result)
    _functions(panels.built_for).linear(
        *normed_rows(x, norm),
        panels.native,
        ACTIVATIONS[activation],
        pointer(add),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result


def gated_linear(x: torch.Tensor, gate: LinearWeight, up: LinearWeight, activation: Activation, norm: RowNorm | None) -> torch.Tensor:
    """See the public function; takes weights of one size."""
    assert gate.data.shape == up.data.shape, "a gate has as many outputs as what it gates"
    gates, ups, x = _panels(gate), _panels(up), x.contiguous()
    result = torch.empty((x.shape[0], gate.out_features), dtype=_dtype(x, gate, up))
    _functions(gates.built_for).gated_linear(
        *normed_rows(x, norm),
        gates.native,
        ups.native,
        ACTIVATIONS[activation],
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result


def is_float_mlp(gate: LinearWeight | None, up: LinearWeight, down: LinearWeight) -> bool:
    """Whether `float_mlp` computes an MLP of these weights."""
    return all(weight.layout == "panels" for weight in (gate or up, up, down))


def float_mlp(
    x: torch.Tensor,
    gate: LinearWeight | None,
    up: LinearWeight,
    down: LinearWeight,
    activation: Activation,
    norm: RowNorm | None,
    add: torch.Tensor | None,
) -> torch.Tensor:
    """See `whole_mlp`; takes weights that `is_float_mlp`. What goes into down is not rounded."""
    assert down.in_features == up.out_features, "down takes what is between"
    assert gate is None or gate.data.shape == up.data.shape, "a gate has as many outputs as what it gates"
    panels, x = _panels(up), x.contiguous()
    result = torch.empty((x.shape[0], down.out_features), dtype=_dtype(x, up, down, *([] if gate is None else [gate])))
    add = added(add, result)
    _functions(panels.built_for).mlp(
        *normed_rows(x, norm),
        None if gate is None else _panels(gate).native,
        panels.native,
        _panels(down).native,
        ACTIVATIONS[activation],
        pointer(add),
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result


def _dtype(x: torch.Tensor, *weights: LinearWeight) -> torch.dtype:
    """That of rows and weights, which must be one: the library reads memory as it is told to."""
    assert all(weight.data.dtype == x.dtype for weight in weights), (
        f"rows are of {x.dtype}, weights of {[one.data.dtype for one in weights]}"
    )
    return x.dtype


def _panels(weight: LinearWeight) -> PanelWeight:
    assert weight.panels is not None, "the layout says that they are there"
    return weight.panels
