"""Codes that are numbers of eight bits, float8_e4m3fn."""

from __future__ import annotations

import torch

from compute_svc.models.quantised.parts import Parts

FP8 = "F8_E4M3"


def checked_codes(codes: torch.Tensor, parts: Parts, part: str) -> torch.Tensor:
    """The codes, new memory. Raises CheckpointError if one is not a number."""
    # All bits but the sign.
    if bool((codes.view(torch.uint8) & 0x7F == 0x7F).any()):
        raise parts.error(part, "holds codes that are not numbers")
    return codes.clone(memory_format=torch.contiguous_format)
