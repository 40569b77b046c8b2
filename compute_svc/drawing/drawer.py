"""Draws the tokens of a step's rows where their logits are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.changes import RowToDraw
from compute_svc.drawing.direct import DirectDraws, DrawInto, take
from compute_svc.drawing.history import History
from compute_svc.drawing.looks import SameDraws, draw_plain, draw_step, greedy
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.drawing.results import Drawn, RowStatus
from compute_svc.kernels.draw import draw_into, has_kernel
from compute_svc.kernels.host.host_copy import PendingRead, rows_of

_NO_TOKENS = np.empty(0, dtype=np.int64)
# Is told of tokens on the device and of how their requests draw directly; None = not all of them do.
OnTokens = Callable[[torch.Tensor, DirectDraws | None], None]


class Drawer:
    """Draws for all requests of an engine.

    A row's result depends on its logits, its request, its position and its tokens alone.

    Args:
        logits_width: Number of logits of a row.
        device: Where logits come.
        direct: Draws rows that need no more than its numbers; None = the kernel, where there is one.
    """

    def __init__(self, logits_width: int, device: torch.device, direct: DrawInto | None = None) -> None:
        self._width = logits_width
        self._history = History(logits_width, device)
        self._same = SameDraws([])
        has_direct = direct is not None or has_kernel(device.type)
        self._draw_into = (direct or draw_into) if has_direct else None
        self._direct: DirectDraws | None = None

    def draw(
        self,
        logits: torch.Tensor,
        draws: Sequence[RequestDraw],
        positions: npt.NDArray[np.int64],
        tokens_of: Callable[[int], npt.NDArray[np.int64]],
        on_tokens: OnTokens | None = None,
        found: torch.Tensor | None = None,
    ) -> Drawn:
        """Draws a token of each row.

        Args:
            logits: [rows, width] float32; stays as it is.
            draws: Whose the rows of logits are, no request twice.
            positions: [rows] of the tokens to be drawn.
            tokens_of: Prompt and answer so far of the request of a row, [n] int64.
            on_tokens: Called before the host waits for the tokens, with those that they are likely to be, [rows] int64 on the device; may write
                `found`, and `logits` where that is given and all rows are certainly decided. Where rows want more than a token it is not called.
            found: What `DirectDraws.find` of these draws gives, where it is known.
        """
        assert logits.shape == (len(draws), self._width) and logits.dtype == torch.float32, "logits are those of the rows"
        if not draws:
            return Drawn(np.empty(0, dtype=np.int64), {}, {})
        # Most steps draw for the same requests as the one before.
        if self._same.draws != draws:
            self._same = SameDraws(list(draws))
            self._direct = DirectDraws.of(draws) if self._draw_into is not None else None
        is_free = positions.min() >= self._same.bare_from
        assert found is None or (is_free and self._direct is not None), "what was found is what a direct draw finds"
        if is_free:
            if self._direct is not None and self._draw_into is not None:
                if found is None:
                    found = self._direct.find(logits, positions, self._draw_into)
                drawn, again = take(found, None if on_tokens is None else partial(_tell, on_tokens, self._direct))
                return self._look_again(logits, positions, drawn, again)
            tell = None if on_tokens is None else partial(_tell, on_tokens, None)
            if self._same.is_bare:
                return _draw_bare(logits, tell)
            if self._same.is_plain:
                return self._draw_plain(logits, positions, tell)
        rows = [
            RowToDraw(draw, position, tokens_of(row) if draw.changes_at(position) else _NO_TOKENS)
            for row, (draw, position) in enumerate(zip(draws, positions.tolist(), strict=True))
        ]
        return draw_step(logits, rows, self._history)

    def _draw_plain(
        self, logits: torch.Tensor, positions: npt.NDArray[np.int64], on_tokens: Callable[[torch.Tensor], None] | None
    ) -> Drawn:
        tokens, again = draw_plain(logits, self._same, positions, on_tokens)
        return self._look_again(logits, positions, Drawn(tokens, {}, {}), again)

    def _look_again(self, logits: torch.Tensor, positions: npt.NDArray[np.int64], drawn: Drawn, again: list[int]) -> Drawn:
        """What is drawn, once rows at some places are looked at more closely; nothing of them is changed."""
        if not again:
            return drawn
        rows = [RowToDraw(self._same.draws[place], int(positions[place]), _NO_TOKENS) for place in again]
        closer = draw_step(rows_of(logits, again), rows, self._history)
        tokens = drawn.tokens.copy()
        tokens[again] = closer.tokens
        failed = {again[place]: status for place, status in closer.failed.items()}
        return Drawn(tokens, {**drawn.failed, **failed}, {}, likely=drawn.tokens)

    def forget(self, draw: RequestDraw) -> None:
        """A request is over, and what was kept for it is free."""
        self._history.forget(draw)


def _tell(on_tokens: OnTokens, direct: DirectDraws | None, tokens: torch.Tensor) -> None:
    on_tokens(tokens, direct)


def _draw_bare(logits: torch.Tensor, on_tokens: Callable[[torch.Tensor], None] | None) -> Drawn:
    """The likeliest token of each row, the lowest id among equals, and nothing else."""
    ids, best = greedy(logits)
    read = PendingRead(ids, best)
    if on_tokens is not None:
        on_tokens(ids[:, 0])
    tokens, values = read.take()
    broken = np.flatnonzero(~np.isfinite(values[:, 0])).tolist()
    return Drawn(tokens[:, 0], dict.fromkeys(broken, RowStatus.BROKEN), {})
