"""Matrices of which two of each four numbers in a row are stored, and which two they are: compressed-tensors' sparse-24-bitmask."""

from __future__ import annotations

import torch

from compute_svc.models.quantised.coded_tensor import RawReader
from compute_svc.models.quantised.parts import Parts


def require_two_of_four(parts: Parts, raw: RawReader, *dtypes: str) -> tuple[int, int]:
    """Checks the tensors of such a matrix.

    Args:
        parts: They.
        raw: Reads its shape.
        dtypes: In which its numbers may be stored.

    Returns:
        [N, K].

    Raises:
        CheckpointError: One is missing, or they do not fit each other.
    """
    outputs, half = parts.shape("compressed", *dtypes, dims=2)
    inputs = 2 * half
    if inputs % 4:
        raise parts.error("compressed", f"has {half} columns, it must be two for each four")
    parts.require("bitmask", (outputs, -(-inputs // 8)), "U8")
    parts.require("shape", (2, 1) if parts.shape_of("shape", "I64", "I32") == (2, 1) else (2,), "I64", "I32")
    given = parts.read(raw, "shape").flatten().tolist()
    if given != [outputs, inputs]:
        raise parts.error("shape", f"is {given}, which does not fit compressed of the shape {[outputs, half]}")
    return outputs, inputs


def two_of_four(parts: Parts, raw: RawReader, shape: tuple[int, int]) -> torch.Tensor:
    """The matrix, new memory.

    Args:
        parts: Its tensors, as checked.
        raw: Reads them.
        shape: [N, K].

    Raises:
        CheckpointError: The mask does not have two of each four.
    """
    values = parts.read(raw, "compressed")
    bits = torch.arange(8, dtype=torch.uint8)
    mask = ((parts.read(raw, "bitmask")[..., None] >> bits) & 1).bool().flatten(1)[:, : shape[1]].contiguous()
    if not bool((mask.view(shape[0], -1, 4).sum(-1) == 2).all()):
        raise parts.error("bitmask", "does not say two of each four")
    # Bytes or words, as numbers of any kind: only they may be put so.
    as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[values.element_size()]
    whole = torch.zeros(shape, dtype=as_integers)
    whole[mask] = values.contiguous().view(as_integers).flatten()
    return whole.view(values.dtype)
