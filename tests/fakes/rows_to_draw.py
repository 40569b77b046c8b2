"""Rows to draw as tests say them: a request's draw and its tokens; and what is drawn, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing import Drawer, RequestDraw, RowLogprobs, RowStatus
from compute_svc.drawing.changes import RowToDraw


class DrawnRows(NamedTuple):
    """What each row draws."""

    tokens: list[int]
    status: list[RowStatus]
    logprobs: list[RowLogprobs | None]


def row_to_draw(draw: RequestDraw, tokens: npt.NDArray[np.int64]) -> RowToDraw:
    """The row for the token behind these."""
    return RowToDraw(draw, tokens.size - draw.num_prompt, tokens)


def draw_rows(drawer: Drawer, logits: torch.Tensor, rows: Sequence[RowToDraw]) -> DrawnRows:
    """Draws each row."""
    positions = np.array([row.position for row in rows], dtype=np.int64)
    drawn = drawer.draw(logits, [row.draw for row in rows], positions, lambda row: rows[row].tokens)
    places = range(len(rows))
    return DrawnRows(
        drawn.tokens.tolist(),
        [drawn.failed.get(place, RowStatus.DRAWN) for place in places],
        [drawn.logprobs.get(place) for place in places],
    )
