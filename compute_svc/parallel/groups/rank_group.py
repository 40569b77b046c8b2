"""One of the ranks that compute a model together, as the layers see it: what a rank's products lack is the sum over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Collectives(NamedTuple):
    """What ranks do together; every rank calls the same ones in the same order.

    Attributes:
        add_up: Of tensors of one shape, contiguous; each becomes the sum, the same bits on every rank.
        spread: Of tensors of one shape, contiguous; each becomes what rank 0 has.
        gather: Tensors of one shape, of all ranks in their order, on rank 0; none elsewhere.
    """

    add_up: Callable[[torch.Tensor], object]
    spread: Callable[[torch.Tensor], object]
    gather: Callable[[torch.Tensor], list[torch.Tensor]]


class RankGroup:
    """A rank of a group; of one rank alone unless the others are given.

    A rank has some of the heads and a part of every MLP's width, whole hidden states, and a part of the vocabulary's logits.

    Args:
        rank: From 0 on.
        size: How many there are.
        collectives: Reach the others; not called where there are none.
    """

    def __init__(self, rank: int = 0, size: int = 1, collectives: Collectives | None = None) -> None:
        assert 0 <= rank < size and (size == 1 or collectives is not None), "a rank is one of its group and reaches the others"
        self.rank = rank
        self.size = size
        self._collectives = collectives

    @property
    def is_first(self) -> bool:
        """Whether this rank brings in what is added once: residuals, and biases of products that are summed."""
        return self.rank == 0

    def once(self, addend: torch.Tensor | None) -> torch.Tensor | None:
        """What this rank adds to its part of a sum, so that it is in the sum once."""
        return addend if self.rank == 0 else None

    def sum_(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' parts, in the memory of this one's."""
        if self._collectives is not None:
            self._collectives.add_up(part)
        return part

    def least(self, number: int, device: torch.device) -> int:
        """The least of all ranks' numbers. Waits for the device."""
        if self._collectives is None:
            return number
        numbers = torch.zeros(self.size, dtype=torch.int64, device=device)
        numbers[self.rank] = number
        return int(self.sum_(numbers).min())

    def from_first_(self, tensor: torch.Tensor) -> None:
        """Effects: writes what rank 0 has there into every other rank's tensor."""
        if self._collectives is not None:
            self._collectives.spread(tensor)

    def side_by_side(self, part: torch.Tensor, width: int) -> torch.Tensor:
        """[M, width] on rank 0, of all ranks' [M, N]; what the last ones have past the width is left out. Elsewhere the rank's own part."""
        if self._collectives is None:
            return part
        parts = self._collectives.gather(part)
        each = part.shape[1]
        wanted = [max(0, min(each, width - rank * each)) for rank in range(len(parts))]
        return torch.cat([one[:, :count] for one, count in zip(parts, wanted, strict=True)], dim=1) if parts else part


ALONE = RankGroup()
"""All of a model in one process."""
