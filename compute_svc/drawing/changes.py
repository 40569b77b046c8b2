"""Changes of logits before the draw: penalties, bias and bans, for all rows together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.history import IN_ANSWER, History
from compute_svc.drawing.request_draw import RequestDraw
from compute_svc.kernels.host.host_copy import to_device

_Number = TypeVar("_Number", np.int64, np.float64)
_LARGEST = torch.finfo(torch.float32).max


class RowToDraw(NamedTuple):
    """A row of logits.

    Attributes:
        draw: Whose it is.
        position: The index in the answer of the token to be drawn.
        tokens: [n] int64, prompt and answer so far; of a row whose logits do not change, nothing.
    """

    draw: RequestDraw
    position: int
    tokens: npt.NDArray[np.int64]


class Penalties(NamedTuple):
    """Penalties of rows or cells: float64, shaped so that they broadcast."""

    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor


def apply_changes(logits: torch.Tensor, rows: Sequence[RowToDraw], history: History) -> None:
    """Changes logits as their requests want.

    Args:
        logits: [rows, width] float32.
        rows: Whose they are.

    Effects: writes `logits`; history counts what it did not know of the rows.
    """
    width = logits.shape[1]
    lists = _Lists(width)
    for index, row in enumerate(rows):
        lists.add(index, row, history)
    packed = lists.packed()
    sent = _Sent(*to_device(packed, logits.device))
    penalties = Penalties(*sent.penalties.view(torch.float64).unbind(0))
    flat, counts = logits.view(-1), history.counts
    if sent.uncounted_cells.numel():
        history.add(sent.uncounted_cells, sent.uncounted_amounts)
    adjusted = None
    if sent.adjusted_cells.numel():
        adjusted = _adjusted(logits, counts, penalties, sent)
    if lists.any_penalties:
        _penalise(logits, counts, penalties, sent.slots)
    if adjusted is not None:
        flat.index_copy_(0, sent.adjusted_cells, adjusted)
    if sent.limited_rows.numel():
        kept = flat.index_select(0, sent.allowed_cells)
        logits.index_fill_(0, sent.limited_rows, -torch.inf)
        flat.index_copy_(0, sent.allowed_cells, kept)
    if sent.banned_cells.numel():
        flat.index_fill_(0, sent.banned_cells, -torch.inf)


class _Sent(NamedTuple):
    """What goes to the device for the changes of some rows; a cell is row * width + id.

    Attributes:
        slots: [rows] of the history; 0 for rows without penalties, whose penalties do nothing.
        penalties: [3, rows] float64, bit by bit in int64.
        uncounted_cells: [n] of the history.
        uncounted_amounts: [n].
        adjusted_cells: [n], no cell twice.
        adjustments: [2, n] float64, bit by bit in int64: losses and gains.
        limited_rows: Rows of which only `allowed_cells` can be drawn.
        allowed_cells: [n].
        banned_cells: [n].
    """

    slots: torch.Tensor
    penalties: torch.Tensor
    uncounted_cells: torch.Tensor
    uncounted_amounts: torch.Tensor
    adjusted_cells: torch.Tensor
    adjustments: torch.Tensor
    limited_rows: torch.Tensor
    allowed_cells: torch.Tensor
    banned_cells: torch.Tensor


class _Lists:
    """Gathers what the rows need, on the host."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._slots: list[int] = []
        self._penalties: list[tuple[float, float, float]] = []
        self._uncounted: list[npt.NDArray[np.int64]] = []
        self._amounts: list[npt.NDArray[np.int64]] = []
        self._adjusted: list[npt.NDArray[np.int64]] = []
        self._losses: list[npt.NDArray[np.float64]] = []
        self._gains: list[npt.NDArray[np.float64]] = []
        self._limited: list[int] = []
        self._allowed: list[npt.NDArray[np.int64]] = []
        self._banned: list[npt.NDArray[np.int64]] = []
        self.any_penalties = False

    def add(self, index: int, row: RowToDraw, history: History) -> None:
        draw, start = row.draw, index * self._width
        self._penalties.append(draw.penalties)
        if draw.counts:
            self.any_penalties = True
            uncounted = history.uncounted(draw, row.tokens)
            self._slots.append(history.slot(draw))
            self._uncounted.append(uncounted.cells)
            self._amounts.append(uncounted.amounts)
        else:
            self._slots.append(0)
        if draw.adjusts:
            adjustments = draw.adjustments(row.tokens)
            self._adjusted.append(adjustments.ids + start)
            self._losses.append(adjustments.losses)
            self._gains.append(adjustments.gains)
        allowed, bans = draw.allowed, draw.bans(row.tokens)
        mask = draw.mask(row.position)
        if mask is not None and allowed is not None:
            allowed = allowed[mask[allowed]]
        elif mask is not None and 2 * np.count_nonzero(mask) < self._width:
            allowed = np.flatnonzero(mask)
        elif mask is not None:
            # Whichever of the two is the shorter list.
            bans = np.concatenate((bans, np.flatnonzero(~mask)))
        if allowed is not None:
            self._limited.append(index)
            self._allowed.append(allowed + start)
        if bans.size:
            self._banned.append(bans + start)

    def packed(self) -> list[npt.NDArray[np.int64]]:
        """The fields of `_Sent`."""
        adjustments = np.stack((_joined(self._losses, np.float64), _joined(self._gains, np.float64)))
        return [
            np.array(self._slots, dtype=np.int64),
            np.array(self._penalties, dtype=np.float64).T.copy().view(np.int64),
            _joined(self._uncounted, np.int64),
            _joined(self._amounts, np.int64),
            _joined(self._adjusted, np.int64),
            adjustments.view(np.int64),
            np.array(self._limited, dtype=np.int64),
            _joined(self._allowed, np.int64),
            _joined(self._banned, np.int64),
        ]


def _joined(arrays: list[npt.NDArray[_Number]], dtype: type[_Number]) -> npt.NDArray[_Number]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)


def _penalised(logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> torch.Tensor:
    """float64: logits after the penalties for tokens that were seen; all of one shape, or such that they broadcast."""
    values = logits.to(torch.float64)
    repeated = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
    values = torch.where(counts != 0, repeated, values)
    values = torch.where(counts >= IN_ANSWER, values - penalties.presence, values)
    return values.sub_(penalties.frequency * (counts >> 1))


def _rounded(values: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """float32: no penalty makes an id impossible and no bonus makes it certain; what the model gave no chance has none.

    Args:
        values: float64, changed.
        logits: float32 of the same shape, as the model gave them.
    """
    return values.clamp_(-_LARGEST, _LARGEST).to(torch.float32).masked_fill_(logits == -torch.inf, -torch.inf)


def _adjusted(logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties, sent: _Sent) -> torch.Tensor:
    """[n] float32: logits of the adjusted cells, after everything but bans."""
    width = logits.shape[1]
    rows = torch.div(sent.adjusted_cells, width, rounding_mode="floor")
    raw = logits.view(-1).index_select(0, sent.adjusted_cells)
    values = raw.to(torch.float64)
    if counts.numel():
        seen = counts.view(-1).index_select(0, sent.adjusted_cells + (sent.slots.index_select(0, rows) - rows) * width)
        values = _penalised(raw, seen, Penalties(*(one.index_select(0, rows) for one in penalties)))
    losses, gains = sent.adjustments.view(torch.float64).unbind(0)
    return _rounded(values - losses + gains, raw)


def _penalise(logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties, slots: torch.Tensor) -> None:
    """Writes logits after the penalties for tokens that were seen."""
    seen = counts.index_select(0, slots)
    if logits.device.type == "cpu":
        penalise_seen(logits, seen, penalties)
    else:
        penalise_all(logits, seen, penalties)


def penalise_seen(logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> None:
    """Looks for the few ids that were seen, which a device would have to be asked for.

    Args:
        logits: [rows, width] float32.
        counts: [rows, width] int32, as the history has them.
        penalties: [rows] each.

    Effects: writes `logits`.
    """
    cells = torch.from_numpy(np.flatnonzero(counts.numpy()))
    rows = torch.div(cells, logits.shape[1], rounding_mode="floor")
    raw = logits.view(-1).index_select(0, cells)
    changed = _penalised(raw, counts.view(-1).index_select(0, cells), Penalties(*(one.index_select(0, rows) for one in penalties)))
    logits.view(-1).index_copy_(0, cells, _rounded(changed, raw))


def penalise_all(logits: torch.Tensor, counts: torch.Tensor, penalties: Penalties) -> None:
    """As `penalise_seen`, of all ids alike."""
    changed = _penalised(logits, counts, Penalties(*(one[:, None] for one in penalties)))
    logits.copy_(_rounded(changed, logits))
