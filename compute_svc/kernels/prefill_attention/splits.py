"""Which blocks of queries have their tokens split over programs: those of few queries over many tokens, which would leave a device idle.

Sizes that the host knows decide, so that a launch waits for nothing and may be recorded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from compute_svc.kernels.attention.attention_spec import AttentionSpec
from compute_svc.kernels.host.host_copy import Ids

UNIT_TOKENS = 128
"""Splits begin at multiples of it, a multiple of every tile."""

SPLIT_NUMBERS = 5
"""int64 numbers that say what a program does of a block: see `Splits`."""

LEAST_SPLIT_TOKENS = 256
"""A split has so many at least: with fewer, adding up costs more than is gained."""

# What a program costs before its first unit, and what handing in and adding up costs, in units.
_START, _ADDING = 1, 2

# Of programs, up to which splits are made even; with more the last one weighs little.
_WAVES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """How programs share blocks. Read by kernels of one stream at a time: layers use its buffers one after the other.

    A place is what a split has of a query, for all heads; the splits of a block are next to each other, as are its queries in each.

    Attributes:
        items: [B, SPLIT_NUMBERS] int64 for each row of a plan's blocks, in which a block has a row for each of its splits: first token, the one
            behind the last, the place of the block's first split, which split it is, and how many there are.
        partials: [places, num_heads, D] float32, weighted values.
        stats: [places, num_heads, 2] float32, largest score and sum of weights.
        counters: [places, num_heads] int32, how many splits are done, at the first place of some queries; zeros between launches.
    """

    items: torch.Tensor
    partials: torch.Tensor
    stats: torch.Tensor
    counters: torch.Tensor


class Shares(NamedTuple):
    """Blocks by their splits.

    Attributes:
        blocks: [B] which block each row is of.
        items: As `Splits` has them.
        num_places: Of all splits.
    """

    blocks: Ids
    items: Ids
    num_places: int


def share(blocks: Ids, spec: AttentionSpec, wanted: int, split_tokens: int | None) -> Shares | None:
    """Cuts what blocks see into splits; None if no block is worth it.

    Args:
        blocks: [B, 4] as a plan has them.
        spec: The model's attention.
        wanted: So many blocks keep a device busy.
        split_tokens: A multiple of UNIT_TOKENS, as many as splits have at most; None = as the load asks for.
    """
    if len(blocks) == 0:
        return None
    first, ends = blocks[:, 3], blocks[:, 3] + blocks[:, 2]
    begins = np.zeros_like(first) if spec.window is None else np.maximum(first + 1 - spec.window, 0) // UNIT_TOKENS
    units = -(-ends // UNIT_TOKENS) - begins
    counts = _counts(units, wanted) if split_tokens is None else -(-units * UNIT_TOKENS // split_tokens)
    if int(counts.max()) == 1:
        return None
    shares = -(-units // counts)
    counts = -(-units // shares)
    places = np.where(counts > 1, counts * blocks[:, 2], 0)
    of_block = np.repeat(np.arange(len(blocks)), counts)
    split = np.arange(len(of_block)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Longest first, as blocks are.
    order = np.argsort(-shares[of_block], kind="stable")
    of_block, split = of_block[order], split[order]
    items = np.empty((len(of_block), SPLIT_NUMBERS), dtype=np.int64)
    items[:, 0] = (begins[of_block] + split * shares[of_block]) * UNIT_TOKENS
    items[:, 1] = items[:, 0] + shares[of_block] * UNIT_TOKENS
    items[:, 2] = (np.cumsum(places) - places)[of_block]
    items[:, 3] = split
    items[:, 4] = counts[of_block]
    return Shares(of_block, items, int(places.sum()))


def _counts(units: Ids, wanted: int) -> Ids:
    """[B] into how many splits each block goes: what lets the last program end first, by a rough count."""
    best = np.ones_like(units)
    lowest = _cost(units, best, wanted)
    total = int(units.sum())
    for waves in range(1, _WAVES + 1):
        most = max(waves * wanted, 1)
        if waves > 1 and len(units) > most:
            continue
        per = max(LEAST_SPLIT_TOKENS // UNIT_TOKENS, -(-total // most))
        counts = -(-units // per)
        # Of more blocks than that, those far longer than what each program has of the load are cut down to it.
        while len(units) <= most < int(counts.sum()):
            per += -(-per // 16)
            counts = -(-units // per)
        cost = _cost(units, counts, wanted)
        if cost < lowest:
            best, lowest = counts, cost
    return best


def _cost(units: Ids, counts: Ids, wanted: int) -> int:
    """Units until the last program ends, of programs that start longest first, `wanted` at a time."""
    shares = np.sort(np.repeat(-(-units // counts), counts))[::-1]
    waves = shares[:: max(wanted, 1)]
    return int(waves.sum()) + _START * len(waves) + (_ADDING if int(counts.max()) > 1 else 0)


def buffers(shares: Shares, items: torch.Tensor, spec: AttentionSpec) -> Splits:
    """With memory for what splits have; items are those of `shares` on the device."""
    partials = torch.empty((shares.num_places, spec.num_heads, spec.head_dim), dtype=torch.float32, device=items.device)
    stats = torch.empty((shares.num_places, spec.num_heads, 2), dtype=torch.float32, device=items.device)
    counters = torch.zeros((shares.num_places, spec.num_heads), dtype=torch.int32, device=items.device)
    return Splits(items, partials, stats, counters)
