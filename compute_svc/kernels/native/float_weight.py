"""Weights of floats as the library takes them: `FloatWeight` of source/float_products.h, which also says how they are laid out."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.host.huge_pages import in_huge_pages
from compute_svc.kernels.native.library import DTYPES

# `kPanelOutputs` of source/float_products.h.
_PANEL_OUTPUTS: dict[InstructionSet, int] = {"avx512_vnni": 32, "avx2": 16, "portable": 8}

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class NativeFloats(ctypes.Structure):
    """Addresses within a `PanelWeight`, and its sizes."""

    _fields_ = (("data", _POINTER), ("bias", _POINTER), ("inputs", _NUMBER), ("outputs", _NUMBER), ("dtype", _NUMBER))


# Types of the functions' arguments: rows and their number, what they are normalised by, weights, activation, what is added, result, threads.
_WEIGHT = ctypes.POINTER(NativeFloats)
_NORMED = (_POINTER, _NUMBER, _POINTER, ctypes.c_double)
FLOAT_LINEAR = (*_NORMED, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER)
FLOAT_GATED_LINEAR = (*_NORMED, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _NUMBER)
FLOAT_MLP = (*_NORMED, _WEIGHT, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER)


class PanelWeight(NamedTuple):
    """A weight in the library's panels; the tensors must live as long as `native` is used.

    Attributes:
        data: [panels, K, outputs of a panel], the weight's dtype; of bfloat16 the halves of a panel in each other.
        bias: float32, filled up to whole panels; None = zero.
        built_for: Whose panels they are.
        native: What functions are given.
    """

    data: torch.Tensor
    bias: torch.Tensor | None
    built_for: InstructionSet
    native: NativeFloats

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)


def panel_weight(weight: torch.Tensor, bias: torch.Tensor | None, built_for: InstructionSet) -> PanelWeight:
    """Lays out a weight for the library of an instruction set.

    Args:
        weight: [N, K], float32 or bfloat16.
        bias: [N]; None = zero.
        built_for: The library's.
    """
    outputs, inputs = weight.shape
    width = _PANEL_OUTPUTS[built_for]
    filled = F.pad(weight, (0, 0, 0, -outputs % width))
    panels = filled.view(-1, width, inputs).transpose(1, 2)
    if weight.dtype == torch.bfloat16:
        panels = panels.reshape(-1, inputs, 2, width // 2).transpose(2, 3)
    data = in_huge_pages(panels.contiguous())
    filled_bias = None if bias is None else F.pad(bias.float(), (0, -outputs % width))
    native = NativeFloats(
        data=data.data_ptr(),
        bias=None if filled_bias is None else filled_bias.data_ptr(),
        inputs=inputs,
        outputs=outputs,
        dtype=DTYPES[weight.dtype],
    )
    return PanelWeight(data, filled_bias, built_for, native)
