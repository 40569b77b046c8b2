"""Arithmetic that numpy does several times faster than torch on a CPU, over memory that both see; elsewhere torch does it."""

from __future__ import annotations

import numpy as np
import torch


def log_(values: torch.Tensor) -> torch.Tensor:
    """The natural logarithm, in place."""
    if values.device.type != "cpu":
        return values.log_()
    array = values.numpy()
    np.log(array, out=array)
    return values


def exp_(values: torch.Tensor) -> torch.Tensor:
    """The exponential, in place."""
    if values.device.type != "cpu":
        return values.exp_()
    array = values.numpy()
    np.exp(array, out=array)
    return values


def sort_rows(values: torch.Tensor) -> torch.Tensor:
    """[rows, n], each row rising."""
    if values.device.type != "cpu":
        return values.sort(dim=1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))
