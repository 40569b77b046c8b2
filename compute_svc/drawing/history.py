"""How often each token is in a request, for its penalties: counts on the device, one row a request, brought up to date when it is drawn for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.request_draw import RequestDraw

_FIRST_SLOTS = 4
# A count is twice the number of occurrences in the answer, and one more if the prompt has the token.
IN_PROMPT = 1
IN_ANSWER = 2


class Uncounted(NamedTuple):
    """What is to be added to counts: `cells` [n] int64, slot * width + id, perhaps one twice, and `amounts` [n] int64."""

    cells: npt.NDArray[np.int64]
    amounts: npt.NDArray[np.int64]


class History:
    """Counts of requests with penalties.

    Args:
        logits_width: Number of logits.
        device: Where the counts are.

    Attributes:
        counts: [slots, width] int32.
    """

    def __init__(self, logits_width: int, device: torch.device) -> None:
        self._width = logits_width
        self.counts = torch.zeros((0, logits_width), dtype=torch.int32, device=device)
        self._free: list[int] = []
        self._slots: dict[RequestDraw, int] = {}
        self._num_counted: dict[RequestDraw, int] = {}

    def slot(self, draw: RequestDraw) -> int:
        """The row of a request; a new one knows no token.

        Effects: may make the counts grow, which moves them.
        """
        slot = self._slots.get(draw)
        if slot is None:
            if not self._free:
                self._grow()
            slot = self._slots[draw] = self._free.pop()
            self._num_counted[draw] = 0
            self.counts[slot].zero_()
        return slot

    def uncounted(self, draw: RequestDraw, tokens: npt.NDArray[np.int64]) -> Uncounted:
        """What the counts do not know yet of a request; whoever asks adds it.

        Args:
            tokens: Prompt and answer so far.

        Effects: all of it counts as known from now on.
        """
        slot, counted = self.slot(draw), self._num_counted[draw]
        assert counted <= tokens.size, "tokens of a request are never taken back"
        self._num_counted[draw] = tokens.size
        answer = tokens[max(counted, draw.num_prompt) :]
        amounts = np.full(answer.size, IN_ANSWER, dtype=np.int64)
        if draw.counts_prompt and counted == 0:
            prompt = np.unique(tokens[: draw.num_prompt])
            answer = np.concatenate((prompt, answer))
            amounts = np.concatenate((np.full(prompt.size, IN_PROMPT, dtype=np.int64), amounts))
        return Uncounted(answer + slot * self._width, amounts)

    def add(self, cells: torch.Tensor, amounts: torch.Tensor) -> None:
        """Adds what was uncounted.

        Args:
            cells: [n] int64.
            amounts: [n] int64.
        """
        self.counts.view(-1).scatter_add_(0, cells, amounts.to(torch.int32))

    def forget(self, draw: RequestDraw) -> None:
        """Frees the slot of a request, if it has one."""
        slot = self._slots.pop(draw, None)
        if slot is not None:
            del self._num_counted[draw]
            self._free.append(slot)

    def _grow(self) -> None:
        old = self.counts
        slots = max(_FIRST_SLOTS, 2 * len(old))
        self.counts = torch.zeros((slots, self._width), dtype=torch.int32, device=old.device)
        self.counts[: len(old)].copy_(old)
        self._free.extend(range(slots - 1, len(old) - 1, -1))
