"""What a device can do beyond what every CUDA device can."""

from __future__ import annotations

from functools import cache

import torch

# Ada and Hopper are the first.
_FLOAT8_CAPABILITY = (8, 9)
# Hopper is the first.
_OVERLAP_CAPABILITY = (9, 0)
_HOPPER = 9


def has_float8(device: torch.device) -> bool:
    """Whether a device has instructions for float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY


def overlaps_launches(device: torch.device) -> bool:
    """Whether a kernel may begin on a device while the one before it ends: programmatic dependent launch."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _OVERLAP_CAPABILITY


@cache
def has_wgmma(device: torch.device) -> bool:
    """Whether matrix units of a device read both factors in shared memory, as Hopper's do: products need fewer registers."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == _HOPPER
