"""What functions of the library are given, from tensors. Whoever calls keeps the tensors alive until the function returns."""

from __future__ import annotations

import torch

from compute_svc.kernels.activation import Activation
from compute_svc.kernels.quantise_rows.rows import Norm

# `Activation` of source/activations.h.
ACTIVATIONS: dict[Activation, int] = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4, "sigmoid": 5}


def pointer(tensor: torch.Tensor | None) -> int | None:
    """A tensor's address; None = there is none."""
    return None if tensor is None else tensor.data_ptr()


def added(add: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor | None:
    """What is added to a result, contiguous; the library reads memory as it is told to."""
    if add is None:
        return None
    assert (add.dtype, add.shape) == (result.dtype, result.shape), "what is added is like the result"
    return add.contiguous()


def normed_rows(x: torch.Tensor, norm: Norm | None) -> tuple[int, int, int | None, float]:
    """Rows x [M, K], contiguous, their number, and what they are normalised by: its weight's address and eps."""
    if norm is not None:
        assert norm.weight.dtype == torch.float32 and norm.weight.shape == x.shape[1:], "a norm's weight is of float32, one for each column"
    return x.data_ptr(), x.shape[0], *((None, 0.0) if norm is None else (norm.weight.data_ptr(), norm.eps))
