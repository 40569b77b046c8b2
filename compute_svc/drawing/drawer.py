"""Draws the tokens of a step's rows where their logits are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from compute_svc.drawing.changes import RowToDraw
from compute_svc.drawing.history import History
from compute_svc.drawing.looks import draw_step, greedy
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowStatus
from compute_svc.kernels.host_copy import read_once


class Drawer:
    """Draws for all requests of an engine.

    A row's result depends on its logits, its request, its position and its tokens alone.

    Args:
        logits_width: Number of logits of a row.
        device: Where logits come.
    """

    def __init__(self, logits_width: int, device: torch.device) -> None:
        self._width = logits_width
        self._history = History(logits_width, device)

    def draw(self, logits: torch.Tensor, rows: Sequence[RowToDraw]) -> Drawn:
        """Draws a token of each row.

        Args:
            logits: [rows, width] float32; stays as it is.
            rows: Whose the rows of logits are, no request twice.
        """
        assert logits.shape == (len(rows), self._width) and logits.dtype == torch.float32, "logits are those of the rows"
        if not rows:
            return Drawn([], [], [])
        if all(row.draw.is_bare and row.position >= row.draw.bare_from for row in rows):
            return _draw_bare(logits)
        return draw_step(logits, rows, self._history)

    def forget(self, draw: RequestDraw) -> None:
        """A request is over, and what was kept for it is free."""
        self._history.forget(draw)


def _draw_bare(logits: torch.Tensor) -> Drawn:
    """The likeliest token of each row, the lowest id among equals, and nothing else."""
    ids, best = greedy(logits)
    if logits.device.type != "cpu":
        tokens, values = read_once(ids, best)
    else:
        tokens, values = ids.numpy(), best.numpy()
    status = [RowStatus.DRAWN if is_finite else RowStatus.BROKEN for is_finite in np.isfinite(values[:, 0]).tolist()]
    return Drawn(tokens[:, 0].tolist(), status, [None] * len(status))
