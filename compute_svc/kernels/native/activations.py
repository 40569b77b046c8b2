"""Numbers of the activations, as the library has them."""

from __future__ import annotations

from compute_svc.kernels.activation import Activation

# `Activation` of source/activations.h.
ACTIVATIONS: dict[Activation, int] = {"none": 0, "silu": 1, "gelu": 2, "gelu_tanh": 3, "relu": 4, "sigmoid": 5}
