"""oneDNN with weights in its own blocks and sums fused into the product.

Measured with float32 on AVX-512 and AVX2 and with bfloat16 on AVX-512, for 1 to 8 threads: from two rows on, every row is the same
whatever the number of rows, which plain ATen products (MKL) are not below twelve rows.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
import torch.nn.functional as F

from compute_svc.kernels.activation import activate
from compute_svc.kernels.linear import native
from compute_svc.kernels.linear.weight import Activation, LinearWeight

_log = logging.getLogger(__name__)

# Rows the blocks are chosen for; one layout serves all row counts about equally well.
_ROWS_HINT = 64

# oneDNN's names of activations and of their algorithms.
_POINTWISE: dict[Activation, tuple[str, str]] = {
    "none": ("none", ""),
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "sigmoid": ("sigmoid", ""),
}


@cache
def onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype on this CPU.

    Effects: logs the reason, once per dtype, if it does not.
    """
    if not torch._C._has_mkldnn:
        _log.warning("linear runs on plain ATen products: this build of torch has no oneDNN")
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _log.warning("linear runs on plain ATen products in bfloat16: this CPU lacks the instructions oneDNN needs")
        return False
    return dtype in (torch.float32, torch.bfloat16)


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
    """See the public function."""
    if native.takes_floats(weight.dtype):
        return native.pack_linear(weight, bias)
    return pack_onednn(weight, bias) if onednn_takes(weight.dtype) else LinearWeight.plain(weight, bias)


def pack_onednn(weight: torch.Tensor, bias: torch.Tensor | None) -> LinearWeight:
    """Lays out a weight whose dtype `onednn_takes` says yes of."""
    out_features, in_features = weight.shape
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    return LinearWeight("onednn", blocks, bias, in_features=in_features, out_features=out_features)


def linear(x: torch.Tensor, weight: LinearWeight, activation: Activation, add: torch.Tensor | None) -> torch.Tensor:
    """See the public function."""
    if weight.layout == "plain":
        result = activate(F.linear(x, weight.data, weight.bias), activation)
        return result if add is None else result.add_(add)
    if add is None:
        return onednn_linear(x, weight, activation)
    return onednn_linear_with(x, weight, add, "add")


def onednn_linear(x: torch.Tensor, weight: LinearWeight, activation: Activation) -> torch.Tensor:
    """activation(x W^T + bias)."""
    name, algorithm = _POINTWISE[activation]
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight.data, weight.bias, name, [], algorithm)
    return result


def onednn_linear_with(x: torch.Tensor, weight: LinearWeight, other: torch.Tensor, operation: str) -> torch.Tensor:
    """(x W^T + bias) operation other, "add" or "mul", rounded once."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, weight.data, weight.bias, operation)
    return result
