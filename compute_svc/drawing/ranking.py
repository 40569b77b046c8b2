"""The filters that count or sum along the ranking: over the head of each row first, which is enough nearly always, or over the whole row."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from compute_svc.drawing import blocks
from compute_svc.drawing.arithmetic import exp_, sort_rows
from compute_svc.drawing.rows import RowNumbers, Survivors

# Temporaries in float64 of so many logits stay in a core's cache.
_CELLS = 1 << 16


class Ranked(NamedTuple):
    """The likeliest ids of each row.

    Attributes:
        keys: [rows, n] int64, rank keys, rising; those of the row's head, then `blocks.WORST`.
        level: [rows, 1] float32: all ids whose logit is above are in the head, and no other; -inf if none is left.
    """

    keys: torch.Tensor
    level: torch.Tensor


def head(logits: torch.Tensor, maxima: torch.Tensor, num_blocks: int) -> Ranked:
    """The ids above the largest maximum that is not among the best blocks'. Ids whose logit is -inf are in no head.

    Args:
        logits: [rows, width] float32.
        maxima: [rows, blocks] float32.
        num_blocks: How many blocks are the best; where ids are likely regardless of their blocks, the head has little more ids.
    """
    if maxima.shape[1] <= num_blocks:
        return whole(logits)
    if logits.device.type == "cpu":
        return head_on_cpu(logits, maxima, num_blocks)
    return head_on_device(logits, maxima, num_blocks)


def head_on_device(logits: torch.Tensor, maxima: torch.Tensor, num_blocks: int) -> Ranked:
    """As `head`, of fewer blocks than there are, in shapes that depend on no value."""
    best = maxima.topk(num_blocks + 1, dim=1)
    level = best.values[:, num_blocks:]
    ids, values = blocks.gather(logits, best.indices[:, :num_blocks])
    keys = blocks.rank_keys(values, ids).flatten(1)
    return Ranked(sort_rows(keys.masked_fill_(~(values.flatten(1) > level), blocks.WORST)), level)


def head_on_cpu(logits: torch.Tensor, maxima: torch.Tensor, num_blocks: int) -> Ranked:
    """As `head_on_device`, with no more columns than the longest head has ids."""
    rows, width = logits.shape
    place = maxima.shape[1] - 1 - num_blocks
    level = np.partition(maxima.numpy(), place, axis=1)[:, place : place + 1]
    values = logits.numpy()
    cells = np.flatnonzero(values > level)
    of_row, ids = np.divmod(cells, width)
    counts = np.bincount(of_row, minlength=rows)
    keys = np.full((rows, max(1, int(counts.max()))), blocks.WORST)
    columns = np.arange(cells.size) - (np.cumsum(counts) - counts)[of_row]
    keys[of_row, columns] = blocks.rank_keys(torch.from_numpy(values[of_row, ids]), torch.from_numpy(ids)).numpy()
    keys.sort(axis=1)
    return Ranked(torch.from_numpy(keys), torch.from_numpy(level))


def whole(logits: torch.Tensor) -> Ranked:
    """All ids of each row whose logit is above -inf."""
    ids = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape)
    keys = blocks.rank_keys(logits, ids).masked_fill_(~(logits > -torch.inf), blocks.WORST)
    return Ranked(sort_rows(keys), torch.full_like(logits[:, :1], -torch.inf))


def sigma_floor(logits: torch.Tensor, best: torch.Tensor, numbers: RowNumbers) -> torch.Tensor:
    """[rows, 1] float64: the least logit that top_n_sigma leaves.

    Args:
        logits: [rows, width] float32.
        best: [rows, 1] float32, their largest.
    """
    floors = torch.empty(best.shape, dtype=torch.float64, device=best.device)
    for start, end in pieces(logits):
        values = logits[start:end].to(torch.float64)
        counts = values > -torch.inf
        values = values.masked_fill_(~counts, 0.0)
        num = counts.sum(dim=1, keepdim=True)
        mean = values.sum(dim=1, keepdim=True) / num
        values = values.sub_(mean).masked_fill_(~counts, 0.0)
        deviation = (values.square_().sum(dim=1, keepdim=True) / num).sqrt_()
        # Infinite times no deviation would be no number.
        reach = torch.where(numbers.top_n_sigma[start:end] < torch.inf, numbers.top_n_sigma[start:end] * deviation, torch.inf)
        floors[start:end] = best[start:end] - reach
    return floors


def pieces(logits: torch.Tensor) -> list[tuple[int, int]]:
    """Ranges of rows whose float64 temporaries stay in a CPU's cache; elsewhere, all rows."""
    rows, width = logits.shape
    step = max(1, _CELLS // width) if logits.device.type == "cpu" else rows
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


class _Masses(NamedTuple):
    """Sums over whole rows: [rows, 1] float64 each."""

    total: torch.Tensor  # of the weights
    moment: torch.Tensor | None  # of the weights times the distances from the best score; where typical_p is in use


def _masses(logits: torch.Tensor, best_score: torch.Tensor, floor: torch.Tensor | None, numbers: RowNumbers) -> _Masses:
    """Over the ids that are left when the first filter that sums over them comes: typical_p, top_p or XTC."""
    needs = numbers.needs
    totals, moments = torch.empty_like(best_score), torch.empty_like(best_score) if needs.typical else None
    for start, end in pieces(logits):
        distances = scores(logits[start:end], numbers.temperature[start:end]).sub_(best_score[start:end])
        weights = exp_(distances.clone() if needs.typical else distances)
        if floor is not None:
            weights = weights.masked_fill_(logits[start:end] < floor[start:end], 0.0)
        if needs.min_p:
            sums_before = (numbers.typical_p[start:end] < 1) | (numbers.top_p[start:end] < 1)
            weights = weights.masked_fill_((weights < numbers.min_p[start:end]) & ~sums_before, 0.0)
        totals[start:end] = weights.sum(dim=1, keepdim=True)
        if moments is not None:
            moments[start:end] = distances.mul_(weights).masked_fill_(weights == 0, 0.0).sum(dim=1, keepdim=True)
    return _Masses(totals, moments)


def scores(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """float64: logits / temperature."""
    return logits.to(torch.float64).div_(temperature)


def filter_ranked(
    logits: torch.Tensor, ranked: Ranked, best_score: torch.Tensor, min_logit: torch.Tensor | None, numbers: RowNumbers
) -> Survivors:
    """Goes through the filters in their order.

    Args:
        logits: [rows, width] float32.
        ranked: Of the rows, a head or whole.
        best_score: [rows, 1] float64.
        min_logit: As `Survivors` has it.
    """
    return _Filters(logits, ranked, best_score, min_logit, numbers).run()


class _Filters:
    """The state between the filters, each of which leaves less of the head.

    What is not in the head is left too, until `is_complete` says that it is not.
    """

    def __init__(
        self, logits: torch.Tensor, ranked: Ranked, best_score: torch.Tensor, min_logit: torch.Tensor | None, numbers: RowNumbers
    ) -> None:
        self._ranked, self._numbers, self._needs = ranked, numbers, numbers.needs
        self._survivors = Survivors(best_score, best_score, min_logit)
        ranked_logits = blocks.ranked_logits(ranked.keys)
        self._left = ranked.keys != blocks.WORST
        self._scores = scores(ranked_logits, numbers.temperature).masked_fill_(~self._left, -torch.inf)
        self._distances = self._scores - best_score
        self._weights = exp_(self._distances.clone())
        self._level = scores(ranked.level, numbers.temperature)
        self._is_complete = ranked.level == -torch.inf
        # Where all the best logits are equal, there may be none above the level.
        self._decided = self._left[:, :1].clone()
        if min_logit is not None:
            self._left &= ranked_logits >= min_logit
            self._is_complete |= ranked.level < min_logit
        self._masses = _masses(logits, best_score, min_logit, numbers) if self._needs.mass else None

    def run(self) -> Survivors:
        self._keep_top_k()
        if self._needs.typical:
            self._keep_typical()
        self._keep_top_p()
        if self._needs.min_p:
            self._keep_min_p()
        if self._needs.xtc:
            self._drop_by_xtc()
        survivors = self._survivors
        # Ranks rise along the head, so the last that is left has the highest key.
        last = torch.where(self._left, self._ranked.keys, blocks.BEST).amax(dim=1, keepdim=True)
        survivors.last_key = torch.where(self._is_complete, last, blocks.WORST)
        survivors.decided = self._decided
        return survivors

    def _total(self) -> torch.Tensor:
        """[rows, 1]: the weights of what is left."""
        inside = self._weights_left().sum(dim=1, keepdim=True)
        return inside if self._masses is None else torch.where(self._is_complete, inside, self._masses.total)

    def _weights_left(self) -> torch.Tensor:
        return torch.where(self._left, self._weights, 0.0)

    def _best_left(self) -> torch.Tensor:
        """[rows, 1]: the largest score of what is left."""
        return torch.where(self._left, self._scores, -torch.inf).amax(dim=1, keepdim=True)

    def _keep_top_k(self) -> None:
        top_k, num_left = self._numbers.top_k, self._left.sum(dim=1, keepdim=True)
        cuts = top_k <= self._ranked.keys.shape[1]
        self._is_complete |= cuts & (num_left >= top_k)
        # Without a limit, what sums along the ranking may still tell from the head; with one, nothing can.
        self._decided &= self._is_complete | torch.isinf(top_k)
        self._left &= torch.arange(self._left.shape[1], device=self._left.device) < top_k

    def _keep_typical(self) -> None:
        typical_p, total, survivors = self._numbers.typical_p, self._total(), self._survivors
        weights = self._weights_left()
        moment = torch.where(weights > 0, weights * self._distances, 0.0).sum(dim=1, keepdim=True)
        if self._masses is not None and self._masses.moment is not None:
            moment = torch.where(self._is_complete, moment, self._masses.moment)
        # -log p is log(total) less the distance, and the entropy log(total) less the mean distance.
        mean = moment / total
        deviations = torch.where(self._left, (mean - self._distances).abs_(), torch.inf)
        order = deviations.sort(dim=1, stable=True)
        sums = weights.gather(1, order.indices).cumsum_(dim=1)
        acts, goal = typical_p < 1, typical_p * total
        # The first reaches or is needed, and so is each before which the sum is short.
        num_needed = (sums < goal).sum(dim=1, keepdim=True)
        place = num_needed.clamp(max=sums.shape[1] - 1)
        num_left = self._left.sum(dim=1, keepdim=True)
        place = torch.minimum(place, (num_left - 1).clamp_(min=0))
        reach = order.values.gather(1, place)
        reach_key = self._ranked.keys.gather(1, order.indices.gather(1, place))
        is_certain = self._is_complete | ((num_needed < num_left) & (reach < mean - (self._level - survivors.top_score)))
        self._decided &= is_certain | ~acts
        survivors.mean = mean
        survivors.reach = torch.where(acts, reach, torch.inf)
        survivors.reach_key = torch.where(acts, reach_key, blocks.WORST)
        self._left &= is_typical(self._distances, self._ranked.keys, survivors)
        self._is_complete |= acts
        # The likeliest may be gone, and weights are those of what is left.
        self._weights = exp_(self._scores - self._best_left())

    def _keep_top_p(self) -> None:
        top_p = self._numbers.top_p
        weights = self._weights_left()
        acts, goal = top_p < 1, top_p * self._total()
        sums = weights.cumsum(dim=1)
        # Kept as long as those before are short of the goal; the first has none before.
        is_short = torch.cat((torch.ones_like(acts), sums[:, :-1] < goal), dim=1)
        self._decided &= self._is_complete | ~acts | (sums[:, -1:] >= goal)
        self._left &= is_short | ~acts
        self._is_complete |= acts

    def _keep_min_p(self) -> None:
        self._survivors.best_score = best = self._best_left()
        self._left &= exp_(self._scores - best) >= self._numbers.min_p
        below = exp_(self._level - best) < self._numbers.min_p
        self._is_complete |= below

    def _drop_by_xtc(self) -> None:
        threshold, total = self._numbers.xtc_threshold, self._total()
        # Nothing times an infinite threshold would be no number.
        goal = torch.where(threshold < torch.inf, threshold * total, torch.inf)
        eligible = self._left & (self._weights >= goal)
        num = eligible.sum(dim=1, keepdim=True)
        last = torch.where(eligible, self._ranked.keys, blocks.BEST).amax(dim=1, keepdim=True)
        drops = num >= 2
        self._survivors.first_key = torch.where(drops, last, blocks.BEST)
        self._left &= ~drops | (self._ranked.keys >= last)
        level = exp_(self._level - self._survivors.top_score)
        self._decided &= self._is_complete | torch.isinf(threshold) | (level < goal)


def is_typical(distances: torch.Tensor, keys: torch.Tensor, survivors: Survivors) -> torch.Tensor:
    """Whether typical_p leaves ids at these distances from the best score, with these rank keys."""
    assert survivors.mean is not None and survivors.reach is not None and survivors.reach_key is not None, "typical_p was looked at"
    deviations = (survivors.mean - distances).abs_()
    return (deviations < survivors.reach) | ((deviations == survivors.reach) & (keys <= survivors.reach_key))
