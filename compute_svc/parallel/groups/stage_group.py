"""One of the stages of a pipeline: a run of layers, whose hidden states come from the stage before and go to the one behind (GPipe, arXiv 1811.06965).

Embedding and head are the first stage's, so that logits are where tokens are drawn: the last stage gives back the rows that are wanted, which are
small beside their logits, and a tied embedding is there once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Links(NamedTuple):
    """How hidden states travel; the stages are a ring, and what one gives the next one takes, in the same order.

    Attributes:
        give: Begins to send a contiguous tensor to the stage behind; whoever calls what it returns waits until the tensor may change.
        take: Waits for what the stage before gives next, and writes it into a contiguous tensor of the same shape and dtype.
    """

    give: Callable[[torch.Tensor], Callable[[], object]]
    take: Callable[[torch.Tensor], object]


class StageGroup:
    """A stage of a pipeline; of one stage alone unless the others are given.

    Args:
        stage: From 0 on.
        count: How many there are, at most as many as layers.
        links: Reach the others; not called where there are none.
    """

    def __init__(self, stage: int = 0, count: int = 1, links: Links | None = None) -> None:
        assert 0 <= stage < count and (count == 1 or links is not None), "a stage is one of its pipeline and reaches the others"
        self.stage = stage
        self.count = count
        self.links = links
        # With each the tensor, whose memory is nobody else's until then.
        self._sent: list[tuple[Callable[[], object], torch.Tensor]] = []

    @property
    def is_first(self) -> bool:
        """Whether this stage embeds tokens and projects to logits."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether no layers follow."""
        return self.stage == self.count - 1

    def give(self, hidden: torch.Tensor) -> None:
        """Begins to send hidden states to the next stage, the last one to the first; `settle` waits until they are sent."""
        assert self.links is not None, "one stage alone gives nothing"
        hidden = hidden.contiguous()
        self._sent.append((self.links.give(hidden), hidden))

    def take(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """[num_rows, width], what the stage before gives next."""
        assert self.links is not None, "one stage alone takes nothing"
        hidden = torch.empty((num_rows, width), dtype=dtype, device=device)
        self.links.take(hidden)
        return hidden

    def settle(self) -> None:
        """Waits until all that was given is sent; on a device, what is computed next there waits."""
        sent, self._sent = self._sent, []
        for wait, _ in sent:
            wait()


ONE_STAGE = StageGroup()
"""All layers of a model in one stage."""
