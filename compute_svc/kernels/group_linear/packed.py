"""Integer weights as the Triton kernel wants them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from compute_svc.kernels.group_linear.lookup import lookup_program

LEAST_GROUP = 32
"""Inputs in a group, or a multiple, of weights of more than one group for each output: as long as the shortest block of inputs."""

_LONGEST_BLOCK = 128
# More than there are tiles of a product where programs share them.
_MOST_SHARED_TILES = 512


@dataclass(frozen=True, slots=True, eq=False)
class GroupedCodes:
    """The weight of a linear map from K inputs to N outputs: in group g, code * scales[g, n] + offsets[g, n], or table[code] * scales[g, n].

    Attributes:
        bits: Of a code, 4 or 8.
        group: Inputs that share a scale; the last group may have fewer.
        block: H, inputs in a row that share a scale.
        in_features: K.
        out_features: N.
        data: [N, K' / P] int16 of P = 16 / bits codes; K' is K filled up with zeros to whole runs of P blocks. Number j of a run has input j of
            each of its blocks, that of the first in its lowest bits; codes of 4 bits with 8 added, codes of 8 bits in two's complement. Of a
            table, as they are.
        scales: [G, N] float32 or 16-bit floating.
        offsets: As scales, float32; None = zero.
        bias: [N] floating; None = zero.
        counters: int32 zeros, where programs that share a tile of a product count themselves; zeros again behind it.
        table: [16] float32, the value of each code of 4 bits; None = the code itself.
        lookup: See lookup.py; empty without a table.
    """

    bits: int
    group: int
    block: int
    in_features: int
    out_features: int
    data: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None
    counters: torch.Tensor
    table: torch.Tensor | None = None
    lookup: str = field(default="", repr=False)

    @property
    def scale_group(self) -> int:
        """Inputs that share a scale; 0 = all."""
        return self.group if self.group < self.in_features else 0

    @property
    def is_even(self) -> bool:
        """Whether its inputs are whole runs."""
        return self.in_features % (16 // self.bits * self.block) == 0

    @property
    def num_bytes(self) -> int:
        """Memory of its tensors."""
        return sum(part.nbytes for part in (self.data, self.scales, self.offsets, self.bias, self.counters) if part is not None)


def pack_groups(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    table: torch.Tensor | None = None,
) -> GroupedCodes:
    """Lays codes out.

    Args:
        codes: [N, K] int8; of 4 bits, from -8 to 7, or with a table from 0 to 15.
        bits: Of a code, 4 or 8; with a table 4.
        group: Inputs that share a scale: a multiple of `LEAST_GROUP`, or at least K.
        scales: [N, G], floating.
        offsets: [N, G], added to code * scale; None = zero.
        bias: [N], floating; None = zero.
        table: [16] floating, the value of each code; None = the code itself.

    Raises:
        ValueError: The group is none of these.
    """
    num_outputs, inputs = codes.shape
    block = _LONGEST_BLOCK if group >= inputs else min(group & -group, _LONGEST_BLOCK)
    if block < LEAST_GROUP:
        raise ValueError(f"groups have {group} inputs, they can have multiples of {LEAST_GROUP}, or all {inputs}")
    wide = None if table is None else table.float().contiguous()
    return GroupedCodes(
        bits=bits,
        group=group,
        block=block,
        in_features=inputs,
        out_features=num_outputs,
        data=_interleave(codes, bits, block, added=8 if bits == 4 and table is None else 0),
        scales=_narrow(scales).t().contiguous(),
        offsets=None if offsets is None else offsets.float().t().contiguous(),
        bias=bias,
        counters=torch.zeros(_MOST_SHARED_TILES, dtype=torch.int32, device=codes.device),
        table=wide,
        lookup="" if wide is None else lookup_program(wide.tolist()),
    )


def _interleave(codes: torch.Tensor, bits: int, block: int, added: int) -> torch.Tensor:
    """See `GroupedCodes.data`."""
    parts = 16 // bits
    filled = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (parts * block))).view(len(codes), -1, parts, block)
    total = torch.zeros((len(codes), filled.shape[1], block), dtype=torch.int16, device=codes.device)
    for part in range(parts):
        code = filled[:, :, part].to(torch.int16) + added
        total |= (code & ((1 << bits) - 1)) << (part * bits)
    return total.flatten(1)


def _narrow(scales: torch.Tensor) -> torch.Tensor:
    """In 16 bits where no digit is lost."""
    if scales.dtype in (torch.float16, torch.bfloat16):
        return scales
    half = scales.half()
    return half if torch.equal(half.to(scales.dtype), scales) else scales.float()
