"""Draws that one kernel decides for good: greedy ones, and those with noise and no filter but min_p, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowStatus
from compute_svc.drawing.rows import Needs, Settings
from compute_svc.kernels.draw import DrawNumbers, draw_into
from compute_svc.kernels.host_copy import PendingRead, to_device

_TEMPERATURE = Settings._fields.index("temperature")
_MIN_P = Settings._fields.index("min_p")


@dataclass(frozen=True, slots=True, eq=False)
class DirectDraws:
    """What stays the same of some requests' draws from step to step, [rows] each.

    Attributes:
        seeds: int64, the bits of unsigned ones.
        temperatures: float64, 0 = greedy.
        min_ps: float64; None = no row has min_p.
    """

    seeds: npt.NDArray[np.int64]
    temperatures: npt.NDArray[np.float64]
    min_ps: npt.NDArray[np.float64] | None

    @classmethod
    def of(cls, draws: Sequence[RequestDraw]) -> DirectDraws | None:
        """None = some row needs more, wherever it is in its answer."""
        for draw in draws:
            if not (draw.is_bare or (draw.is_plain and draw.needs(xtc=False)._replace(min_p=False) == Needs())):
                return None
        temperatures = np.array([0.0 if draw.greedy else draw.settings[_TEMPERATURE] for draw in draws])
        min_ps = np.array([0.0 if draw.greedy else draw.settings[_MIN_P] for draw in draws])
        seeds = np.array([draw.seed for draw in draws], dtype=np.uint64).view(np.int64)
        return cls(seeds, temperatures, min_ps if min_ps.any() else None)

    def send(self, positions: npt.NDArray[np.int64], device: torch.device) -> DrawNumbers | None:
        """Brings them to a device, in one copy that nobody waits for; None = all are greedy.

        Args:
            positions: [rows].
        """
        if not self.temperatures.any():
            return None
        columns = [self.seeds, positions, self.temperatures.view(np.int64)]
        if self.min_ps is not None:
            columns.append(self.min_ps.view(np.int64))
        seeds, there, temperatures, *min_ps = to_device(columns, device)
        return DrawNumbers(seeds, there, temperatures.view(torch.float64), min_ps[0].view(torch.float64) if min_ps else None)

    def draw(
        self, logits: torch.Tensor, positions: npt.NDArray[np.int64], on_tokens: Callable[[torch.Tensor], None] | None = None
    ) -> Drawn:
        """Draws a token of each row, and waits for the device once.

        Args:
            logits: [rows, width].
            positions: [rows] of the tokens to be drawn; none bans its stop ids there.
            on_tokens: See `Drawer.draw`.
        """
        found = torch.empty((2, len(logits)), dtype=torch.int64, device=logits.device)
        draw_into(logits, self.send(positions, logits.device), found[0], found[1])
        read = PendingRead(found)
        if on_tokens is not None:
            on_tokens(found[0])
        tokens, flags = read.take()[0]
        return Drawn(tokens, dict.fromkeys(np.flatnonzero(flags).tolist(), RowStatus.BROKEN), {})
