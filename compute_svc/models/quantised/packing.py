"""Codes as files pack them, into bytes as `stored_weights.codes` has them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from compute_svc.models.quantised.parts import Parts
from compute_svc.stored_weights.codes import Code, pack_codes, unpack_codes

SIGNED: dict[int, Code] = {8: "int8", 4: "int4", 2: "int2"}
UNSIGNED: dict[int, Code] = {8: "uint8", 4: "uint4", 2: "uint2"}

# The highest bit of each code of a byte.
_SIGN_BITS = {8: 0x80, 4: 0x88, 2: 0xAA}


def packed_words(words: torch.Tensor, bits: int, num_columns: int) -> torch.Tensor:
    """Bytes of rows of words that hold codes from their lowest bits on.

    Args:
        words: [N, W] int32, of any strides.
        bits: 8, 4 or 2.
        num_columns: K; what lies behind these in the last word does not count.

    Returns:
        [N, ceil(K * bits / 8)] uint8, new memory; a word's bytes are as little-endian machines have them.
    """
    packed = _bytes(words)[:, : -(-num_columns * bits // 8)].contiguous()
    spare = packed.shape[1] * 8 - num_columns * bits
    if spare:
        packed[:, -1] &= 0xFF >> spare
    return packed


def _bytes(words: torch.Tensor) -> torch.Tensor:
    """[N, 4 * W] uint8, new memory."""
    # What is contiguous may have any stride where it is one wide, and then cannot be viewed.
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def with_sign(packed: torch.Tensor, bits: int, num_columns: int) -> torch.Tensor:
    """Codes less half of their range, in two's complement, in place: unsigned 0 becomes the least number."""
    packed ^= _SIGN_BITS[bits]
    spare = packed.shape[1] * 8 - num_columns * bits
    if spare:
        packed[:, -1] &= 0xFF >> spare
    return packed


class Codes(NamedTuple):
    """As `CodedWeight` has them.

    Attributes:
        code: What a code is.
        data: [N, B] uint8.
        zeros: [N, G] of an integer dtype; None = 0.
    """

    code: Code
    data: torch.Tensor
    zeros: torch.Tensor | None


def less_zeros(packed: torch.Tensor, zeros: torch.Tensor, bits: int, num_columns: int) -> Codes:
    """Unsigned codes from which something is subtracted; signed ones where that is half of their range everywhere.

    Args:
        packed: [N, B], unsigned; changed in place.
        zeros: [N, G] uint8, to subtract.
        bits: 8, 4 or 2.
        num_columns: K.
    """
    half = 1 << (bits - 1)
    is_symmetric = bool((zeros == half).all())
    if not is_symmetric:
        return Codes(UNSIGNED[bits], packed, zeros)
    return Codes(SIGNED[bits], with_sign(packed, bits, num_columns), None)


def unpacked_words(words: torch.Tensor, bits: int, num_columns: int) -> torch.Tensor:
    """[N, K] uint8, the codes of such words one by one."""
    return unpack_codes(_bytes(words), bits, num_columns, signed=False)[:, :num_columns]


def by_group(
    packed: torch.Tensor, bits: int, groups: torch.Tensor, group: int, parts: Parts, part: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Columns in an order in which those of a group lie side by side.

    Args:
        packed: [N, B], columns as the inputs are.
        bits: Of a code.
        groups: [K] of an integer dtype, the group of each.
        group: Columns in each group but the last.
        parts: Whose they are.
        part: Where the groups are from, for messages.

    Returns:
        Columns, and which input each belongs to; None = they are in order.

    Raises:
        CheckpointError: A group has another number of columns.
    """
    expected = torch.arange(len(groups)) // group
    groups = groups.long()
    # Some writers leave zeros where columns are in order.
    if torch.equal(groups, expected) or not bool(groups.any()):
        return packed, None
    order = groups.argsort(stable=True)
    if not torch.equal(groups[order], expected):
        raise parts.error(part, f"does not give {group} columns to each group from 0 to {int(expected[-1])}")
    codes = unpack_codes(packed, bits, len(groups), signed=False)
    return pack_codes(codes.index_select(1, order), bits), order
