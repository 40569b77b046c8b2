"""Draws that kernels decide, nearly always: greedy ones, and those with noise and no filters but top_k, top_p and min_p, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowStatus
from compute_svc.drawing.rows import Needs, Settings
from compute_svc.kernels.draw import BROKEN, UNDECIDED, DrawNumbers, draw_into
from compute_svc.kernels.host.host_copy import PendingRead, to_device

_TEMPERATURE = Settings._fields.index("temperature")
_MIN_P = Settings._fields.index("min_p")
_TOP_K = Settings._fields.index("top_k")
_TOP_P = Settings._fields.index("top_p")

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
        top_ks: int64, 0 = all; None = no row has top_k or top_p.
        top_ps: float64, 1 = all; None where top_ks is.
    """

    seeds: Ids
    temperatures: npt.NDArray[np.float64]
    min_ps: npt.NDArray[np.float64] | None
    top_ks: Ids | None = None
    top_ps: npt.NDArray[np.float64] | None = None

    @classmethod
    def of(cls, draws: Sequence[RequestDraw]) -> DirectDraws | None:
        """None = some row needs more, wherever it is in its answer."""
        for draw in draws:
            if not (draw.is_bare or (draw.is_plain and draw.needs(xtc=False)._replace(rank=False, mass=False, min_p=False) == Needs())):
                return None
        temperatures = np.array([0.0 if draw.greedy else draw.settings[_TEMPERATURE] for draw in draws])
        min_ps = np.array([0.0 if draw.greedy else draw.settings[_MIN_P] for draw in draws])
        seeds = np.array([draw.seed for draw in draws], dtype=np.uint64).view(np.int64)
        top_ks = np.array([0.0 if draw.greedy else draw.settings[_TOP_K] for draw in draws])
        top_ks = np.where(np.isinf(top_ks), 0, top_ks).astype(np.int64)
        top_ps = np.array([1.0 if draw.greedy else draw.settings[_TOP_P] for draw in draws])
        filters = (top_ks, top_ps) if top_ks.any() or (top_ps < 1).any() else (None, None)
        return cls(seeds, temperatures, min_ps if min_ps.any() else None, *filters)

    @property
    def is_decided(self) -> bool:
        """Whether every row is certainly decided."""
        return self.top_ks is None

    def some(self, places: Ids) -> DirectDraws:
        """Those of [n] rows."""
        min_ps, top_ps = (None if one is None else one[places] for one in (self.min_ps, self.top_ps))
        return DirectDraws(
            self.seeds[places], self.temperatures[places], min_ps, None if self.top_ks is None else self.top_ks[places], top_ps
        )

    def send(self, positions: Ids, device: torch.device) -> DrawNumbers | None:
        """Brings them to a device, in one copy that nobody waits for; None = all are greedy.

        Args:
            positions: [rows].
        """
        if not self.temperatures.any():
            return None
        # Whatever is not there is not sent.
        columns = [self.seeds, positions, self.temperatures, self.min_ps, self.top_ks, self.top_ps]
        sent = iter(to_device([one.view(np.int64) for one in columns if one is not None], device))
        seeds, there, temperatures, min_ps, top_ks, top_ps = (None if one is None else next(sent) for one in columns)
        assert seeds is not None and there is not None and temperatures is not None, "each row has them"
        floats = [None if one is None else one.view(torch.float64) for one in (min_ps, top_ps)]
        return DrawNumbers(seeds, there, temperatures.view(torch.float64), floats[0], top_ks, floats[1])

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


def take(found: torch.Tensor, on_tokens: Callable[[torch.Tensor], None] | None = None) -> tuple[Drawn, list[int]]:
    """Waits for what was found of some rows, as `DirectDraws.find` returns it.

    Args:
        on_tokens: Called before, with the tokens on the device; may write `found`.

    Returns:
        What they draw; and places of rows that are not decided.
    """
    read = PendingRead(found.clone())
    if on_tokens is not None:
        on_tokens(found[0])
    tokens, flags = read.take()[0]
    failed = dict.fromkeys(np.flatnonzero(flags == BROKEN).tolist(), RowStatus.BROKEN)
    return Drawn(tokens, failed, {}), np.flatnonzero(flags == UNDECIDED).tolist()
