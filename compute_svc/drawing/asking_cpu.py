"""top_k and top_p on CPUs: instead of ranking a row, ask about the id that would be drawn without them whether they leave it.

What has the largest sum of all ids has it among any of them that it is one of. So an id that was drawn as if there were no filter is what the filter
draws if it leaves it, which top_p does with a probability of top_p at least. If not, it leaves none that is ranked behind that id
either, and the next to ask about is the one with the largest sum of those before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.blocks import LANES
from compute_svc.drawing.gumbel_max_cpu import NEAR, Sums, ids_of_blocks, largest
from compute_svc.drawing.noise_cpu import Numbers
from compute_svc.drawing.rows import RowNumbers

Ids = npt.NDArray[np.int64]
# Rows that are open after so many answers are ranked.
_MOST_ASKED = 8


class Kept(NamedTuple):
    """Of some rows.

    Attributes:
        tokens: [rows, 1] int64, the ids.
        is_drawn: [rows, 1] bool, whether more blocks would not change the token.
        is_ranked: [rows, 1] bool; False where an answer depends on the order of a sum, or there were too many.
    """

    tokens: torch.Tensor
    is_drawn: torch.Tensor
    is_ranked: torch.Tensor


def floors(maxima: torch.Tensor, numbers: RowNumbers) -> npt.NDArray[np.float32] | None:
    """[rows, 1]: what is below has top_k ids before it, for it has as many blocks before it; None if no row has a top_k or there are too few.

    Args:
        maxima: [rows, blocks] float32, of each block.
    """
    top_k = numbers.top_k
    top_k = torch.where(top_k <= maxima.shape[1], top_k, 0.0).long()
    most = int(top_k.max())
    if most == 0:
        return None
    lowest = maxima.topk(most, dim=1).values.gather(1, (top_k - 1).clamp_(min=0))
    of_rows: npt.NDArray[np.float32] = lowest.masked_fill_(top_k == 0, -torch.inf).numpy()
    return of_rows


@np.errstate(invalid="ignore")  # rows that are broken go through too
def largest_kept(logits: torch.Tensor, maxima: torch.Tensor, best: torch.Tensor, found: Sums, numbers: RowNumbers) -> Kept:
    """Finds the ids with the largest sums of those that top_k and top_p leave.

    Args:
        logits: [rows, width] float32.
        maxima: [rows, blocks] float32, of each block.
        best: [rows, 1] float64, the largest score.
        found: Of the rows.
        numbers: Of the rows; no filter is in use but these two and min_p.
    """
    asked_of, sums = _Rows(logits, maxima, best, numbers), found
    tokens, is_drawn = (one.numpy() for one in largest(found))
    is_ranked = ~is_drawn
    rows = np.flatnonzero(is_drawn)
    for _ in range(_MOST_ASKED):
        is_kept, is_gone = asked_of.answers(rows, tokens[rows, 0])
        is_ranked[rows[is_kept]] = True
        rows = rows[is_gone]
        if not rows.size:
            break
        is_before = asked_of.is_before(rows, found.ids[rows], tokens[rows])
        sums = Sums(found.ids[rows], np.where(is_before, found.sums[rows], -np.inf), found.bound[rows])
        others, is_sure = (one.numpy()[:, 0] for one in largest(sums))
        rows = rows[is_sure]
        tokens[rows, 0] = others[is_sure]
    return Kept(torch.from_numpy(tokens), torch.from_numpy(is_drawn), torch.from_numpy(is_ranked))


class _Rows:
    """Rows, and what their filters say of ids."""

    def __init__(self, logits: torch.Tensor, maxima: torch.Tensor, best: torch.Tensor, numbers: RowNumbers) -> None:
        self._logits, self._maxima, self._best = logits.numpy(), maxima.numpy(), best.numpy()
        self._temperature = numbers.temperature.numpy()
        self._top_k, self._top_p = numbers.top_k.numpy()[:, 0], numbers.top_p.numpy()[:, 0]
        self._sums_mass = bool((self._top_p < 1).any())

    def is_before(self, rows: Ids, ids: Ids, tokens: Ids) -> npt.NDArray[np.bool_]:
        """[n, m]: whether ids of n rows ([n, m]) are ranked before other ids of them ([n, 1])."""
        values = self._logits[rows[:, None], np.minimum(ids, self._logits.shape[1] - 1)]
        levels = self._logits[rows[:, None], tokens]
        before: npt.NDArray[np.bool_] = (values > levels) | ((values == levels) & (ids < tokens))
        return before

    def answers(self, rows: Ids, tokens: Ids) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """[n] each: whether the filters leave ids of n rows for certain, and whether they drop them for certain."""
        counts, masses = self._before(rows, tokens)
        is_gone = counts >= self._top_k[rows]
        if not self._sums_mass:
            return ~is_gone, is_gone
        # A part of all, and nearly always enough of it.
        goals = self._goals(rows, self._least_totals(rows))
        is_kept = ~is_gone & (masses < goals * NEAR)
        for place in np.flatnonzero(~(is_kept | is_gone)):
            some = rows[place : place + 1]
            goal = self._goals(some, self._total(int(rows[place])))[0]
            is_kept[place], is_gone[place] = masses[place] < goal * NEAR, masses[place] * NEAR > goal
        return is_kept, is_gone

    def _before(self, rows: Ids, tokens: Ids) -> tuple[Ids, Numbers]:
        """[n] each: how many ids are ranked before these, and the sum of their weights."""
        levels = self._logits[rows, tokens]
        of_rows, blocks = np.nonzero(self._maxima[rows] >= levels[:, None])
        ids, values = ids_of_blocks(self._logits, rows[of_rows], blocks)
        levels, tokens = levels[of_rows][:, None], tokens[of_rows][:, None]
        cells = np.flatnonzero((values > levels) | ((values == levels) & (ids < tokens)))
        of_cells = of_rows[cells // LANES]
        weights = self._weights(rows[of_cells], values.ravel()[cells]) if self._sums_mass else np.zeros(cells.size)
        counts: Ids = np.bincount(of_cells, minlength=rows.size)
        masses: Numbers = np.bincount(of_cells, weights, minlength=rows.size).astype(np.float64)
        return counts, masses

    def _weights(self, rows: Ids, values: npt.NDArray[np.floating]) -> Numbers:
        """exp(score - best score) of a logit of each of some rows."""
        weights: Numbers = np.exp(values / self._temperature[rows, 0] - self._best[rows, 0])
        return weights

    def _goals(self, rows: Ids, totals: Numbers) -> Numbers:
        """[n]: what the weights before an id must reach for top_p to drop it."""
        top_p = self._top_p[rows]
        return np.where(top_p < 1, top_p * totals, np.inf)

    def _least_totals(self, rows: Ids) -> Numbers:
        """[n]: at most the sum of the weights of all ids that top_k leaves."""
        if not np.isinf(self._top_k[rows]).all():
            return np.ones(rows.size)
        totals: Numbers = np.exp(self._maxima[rows] / self._temperature[rows] - self._best[rows]).sum(axis=1)
        return totals

    def _total(self, row: int) -> Numbers:
        """[1]: that sum."""
        values, top_k = self._logits[row], self._top_k[row]
        if top_k < np.inf:
            values = self._largest(row, int(top_k))
        rows = np.full(values.size, row)
        total: Numbers = self._weights(rows, values).sum(keepdims=True)
        return total

    def _largest(self, row: int, num: int) -> Numbers:
        """[num]: the largest logits, in any order. The blocks with the largest maxima have them."""
        maxima = self._maxima[row]
        floor = np.partition(maxima, -num)[-num] if num < maxima.size else -np.inf
        _, values = ids_of_blocks(self._logits[row : row + 1], np.zeros(1, dtype=np.int64), np.flatnonzero(maxima >= floor))
        values = values[values >= floor]
        chosen: Numbers = np.partition(values, -num)[-num:]
        return chosen
