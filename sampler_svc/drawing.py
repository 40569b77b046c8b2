"""From a frame's candidate rows to tokens: what compute must have sent, penalties, rectangles, draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.candidate_rows import CandidateRows, Rectangle
from sampler_svc.errors import Disagreement
from sampler_svc.penalties import Lookup, Penalties
from sampler_svc.sampler import KEEP_ALL, DrawParams, draw
from triserve.rpc.errors import InvalidRequest, ServiceError
from triserve.rpc.sampling import Sampling


class CandidateRow(NamedTuple):
    """One row to draw."""

    row: int  # index in the frame
    position: int
    sampling: Sampling
    penalties: Penalties


class Drawing:
    """Draws candidate rows of one compute replica.

    Args:
        logits_width: number of logits of the replica.
    """

    def __init__(self, logits_width: int) -> None:
        self._logits_width = logits_width
        self._lookup = Lookup(logits_width)

    def draw(self, candidates: CandidateRows, log_sum_exp: NDArray[np.float64], wanted: Sequence[CandidateRow]) -> list[int | ServiceError]:
        """Draws a token for each wanted row.

        Args:
            candidates: of the frame.
            log_sum_exp: [rows of the frame] of the raw logits.
            wanted: rows to draw.

        Returns:
            For each wanted row its token, or why there is none.
        """
        results: list[int | ServiceError] = [Disagreement("a row was not drawn")] * len(wanted)
        drawable: list[int] = []
        totals: list[float] = []
        for index, row in enumerate(wanted):
            try:
                totals.append(self._log_total(row, candidates.count(row.row), float(log_sum_exp[row.row])))
                drawable.append(index)
            except Disagreement as error:
                results[index] = error
        if not drawable:
            return results
        rows = [wanted[index] for index in drawable]
        params = self._params(rows, totals)
        for rectangle in candidates.rectangles(np.array([row.row for row in rows], np.int64)):
            members = rectangle.members.tolist()
            drawn = self._draw_rectangle(rectangle, [rows[member] for member in members], params.of(rectangle.members))
            for member, result in zip(members, drawn, strict=True):
                results[drawable[member]] = result
        return results

    def _log_total(self, row: CandidateRow, count: int, log_sum_exp: float) -> float:
        """Log of what top-p's probabilities are shares of; NaN = the sum over the candidates, or what top-k leaves of them.

        Top-p without top-k needs the sum over the whole row. It is known where nothing is changed and the temperature is 1;
        anywhere else compute must send the row whole.

        Raises:
            Disagreement: the row is not what the contract promises.
        """
        sampling = row.sampling
        if not np.isfinite(log_sum_exp):
            raise Disagreement(f"log_sum_exp is {log_sum_exp}")
        top_k = self._top_k(sampling)
        needed = 1 if top_k == KEEP_ALL or sampling.greedy else top_k
        if count < needed:
            raise Disagreement(f"row has {count} candidates, the draw needs {needed}")
        if sampling.top_p == 1 or top_k < KEEP_ALL or sampling.greedy:
            return float("nan")
        if sampling.temperature == 1 and not row.penalties.changes_at(row.position):
            return log_sum_exp
        if count < self._logits_width:
            raise Disagreement(f"row has {count} candidates, top_p at temperature {sampling.temperature:g} needs the whole row")
        return float("nan")

    def _top_k(self, sampling: Sampling) -> int:
        return KEEP_ALL if sampling.top_k is None or sampling.top_k >= self._logits_width else sampling.top_k

    def _params(self, rows: Sequence[CandidateRow], totals: Sequence[float]) -> DrawParams:
        samplings = [row.sampling for row in rows]
        return DrawParams(
            temperature=np.array([sampling.temperature for sampling in samplings], np.float64),
            top_k=np.array([self._top_k(sampling) for sampling in samplings], np.int64),
            top_p=np.array([sampling.top_p for sampling in samplings], np.float64),
            min_p=np.array([sampling.min_p for sampling in samplings], np.float64),
            log_total=np.array(totals, np.float64),
            # A greedy request may come without a seed, and uses none.
            seed=np.array([sampling.seed or 0 for sampling in samplings], np.uint64),
            position=np.array([row.position for row in rows], np.uint64),
        )

    def _draw_rectangle(self, rectangle: Rectangle, rows: Sequence[CandidateRow], params: DrawParams) -> list[int | ServiceError]:
        ids, logits, counts = rectangle.ids, rectangle.logits, rectangle.counts
        sound: NDArray[np.bool_] = np.all(logits < np.inf, axis=1)  # NaN is not below infinity either
        logits[~sound] = -np.inf
        for place, row in enumerate(rows):
            if row.penalties.changes_at(row.position):
                count = int(counts[place])
                row.penalties.apply(ids[place, :count], logits[place, :count], row.position, self._lookup)
        draws = draw(ids, logits, params)
        results: list[int | ServiceError] = []
        for place, (row, token, possible) in enumerate(zip(rows, draws.token.tolist(), draws.possible.tolist(), strict=True)):
            results.append(token if possible else self._why_impossible(row, int(counts[place]), sound=bool(sound[place])))
        return results

    def _why_impossible(self, row: CandidateRow, count: int, *, sound: bool) -> ServiceError:
        if not sound:
            return Disagreement("a logit is NaN or infinite")
        if row.penalties.bans_at(row.position) and count == self._logits_width:
            return InvalidRequest("min_tokens bans the stop_token_ids, and no other token can be drawn", field="min_tokens")
        return Disagreement(f"none of {count} candidates can be drawn")
