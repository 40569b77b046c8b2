"""The weights of gate and up in one tensor, so that one product has both."""

from __future__ import annotations

import torch

from compute_svc.kernels.linear import LinearWeight


def join(gate: LinearWeight, up: LinearWeight) -> tuple[LinearWeight, LinearWeight]:
    """The same weights, the second behind the first in memory if they can be; a copy unless they are so already.

    They can be if both are plain, of one dtype and shape, and have a bias or none. Let go of those given.
    """
    alike = gate.layout == up.layout == "plain" and (gate.data.dtype, gate.data.shape) == (up.data.dtype, up.data.shape)
    if not alike or (gate.bias is None) != (up.bias is None) or joined(gate, up) is not None:
        return gate, up
    data = torch.cat((gate.data, up.data)).tensor_split(2)
    biases = (None, None) if gate.bias is None or up.bias is None else torch.cat((gate.bias, up.bias)).tensor_split(2)
    return LinearWeight.plain(data[0], biases[0]), LinearWeight.plain(data[1], biases[1])


def joined(gate: LinearWeight, up: LinearWeight) -> LinearWeight | None:
    """Both as one weight of 2N outputs, without a copy; None if the second does not lie behind the first."""
    data = _behind(gate.data, up.data)
    if data is None or (gate.bias is None) != (up.bias is None):
        return None
    bias = None if gate.bias is None or up.bias is None else _behind(gate.bias, up.bias)
    return None if bias is None and gate.bias is not None else LinearWeight.plain(data, bias)


def _behind(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor | None:
    """[2N, ...]: two tensors [N, ...] of one storage, the second right behind the first; None if they do not lie so."""
    is_behind = (
        first.shape == second.shape
        and first.dtype == second.dtype
        and first.is_contiguous()
        and second.is_contiguous()
        and second.data_ptr() == first.data_ptr() + first.nbytes
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    )
    return first.as_strided((2 * first.shape[0], *first.shape[1:]), first.stride()) if is_behind else None
