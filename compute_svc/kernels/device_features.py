"""What a device can do beyond what every CUDA device can."""

from __future__ import annotations

import torch

# Ada and Hopper are the first.
_FLOAT8_CAPABILITY = (8, 9)


def has_float8(device: torch.device) -> bool:
    """Whether a device has instructions for float8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLOAT8_CAPABILITY
