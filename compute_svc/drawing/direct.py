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

Ids = npt.NDArray[np.int64]
# As the function of that name in compute_svc/kernels/draw: logits, numbers, tokens and flags.
DrawInto = Callable[[torch.Tensor, DrawNumbers | None, torch.Tensor, torch.Tensor | None], None]


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

    def some(self, places: Ids) -> DirectDraws:
        """Those of [n] rows."""
        min_ps = None if self.min_ps is None else self.min_ps[places]
        return DirectDraws(self.seeds[places], self.temperatures[places], min_ps)

    def send(self, positions: Ids, device: torch.device) -> DrawNumbers | None:
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

    def find(self, logits: torch.Tensor, positions: Ids, draw: DrawInto = draw_into) -> torch.Tensor:
        """Draws a token of each row, without waiting for the device.

        Args:
            logits: [rows, width].
            positions: [rows] of the tokens to be drawn; none bans its stop ids there.
            draw: What draws.

        Returns:
            [2, rows] int64, tokens and flags.
        """
        found = torch.empty((2, len(logits)), dtype=torch.int64, device=logits.device)
        draw(logits, self.send(positions, logits.device), found[0], found[1])
        return found


def take(found: torch.Tensor, on_tokens: Callable[[torch.Tensor], None] | None = None) -> Drawn:
    """Waits for what was found of some rows, as `DirectDraws.find` returns it.

    Args:
        on_tokens: Called before, with the tokens on the device; may write `found`.
    """
    read = PendingRead(found.clone())
    if on_tokens is not None:
        on_tokens(found[0])
    tokens, flags = read.take()[0]
    return Drawn(tokens, dict.fromkeys(np.flatnonzero(flags).tolist(), RowStatus.BROKEN), {})
