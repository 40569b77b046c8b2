"""Draws one token per row from candidates; vectorised, and the same for a row whatever stands beside it.

The order is fixed: temperature, top-k, top-p on what top-k left, min-p relative to the likeliest, then
argmax(logit / temperature + gumbel(seed, position, id)). Penalties, bias and bans come before and are in the logits already.
Among equals the lowest id comes first, everywhere. Sums run strictly from left to right, so that padding cannot change their rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sampler_svc.philox import GUMBEL_REACH, gumbel

KEEP_ALL = np.iinfo(np.int64).max
"""The top_k of a row that has none."""

_NO_ID = np.uint32(0xFFFFFFFF)
_ID_BITS = 32
# Wider rows are not sorted whole: the likeliest are picked out first, as many as top-k or, in most cases, top-p needs.
_SORTED_WHOLE = 1024
_HEAD = 256
_HEAD_GROWTH = 8


class DrawParams(NamedTuple):
    """How each row is drawn; arrays of [rows]."""

    temperature: NDArray[np.float64]  # 0 = greedy
    top_k: NDArray[np.int64]  # at least 1; KEEP_ALL = no top-k
    top_p: NDArray[np.float64]  # 1 keeps all
    min_p: NDArray[np.float64]  # 0 keeps all
    log_total: NDArray[np.float64]  # log of the sum of exp of the whole row; NaN = the candidates are all there is to sum
    seed: NDArray[np.uint64]
    position: NDArray[np.uint64]

    def of(self, rows: NDArray[np.intp]) -> DrawParams:
        """The parameters of some rows."""
        return DrawParams(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.log_total[rows],
            self.seed[rows],
            self.position[rows],
        )


class Draws(NamedTuple):
    """One token per row."""

    token: NDArray[np.uint32]  # [rows]; without meaning where nothing could be drawn
    possible: NDArray[np.bool_]  # [rows]; False where every logit is -inf


class _Table(NamedTuple):
    """Candidates of rows with their scaled logits; -inf cannot be drawn."""

    ids: NDArray[np.uint32]  # [rows, width]
    scaled: NDArray[np.float64]  # [rows, width]


def draw(ids: NDArray[np.uint32], logits: NDArray[np.float64], params: DrawParams) -> Draws:
    """Draws a token for each row.

    Args:
        ids: [rows, width], in any order.
        logits: [rows, width], without NaN and +inf; -inf cannot be drawn.
        params: of the rows.
    """
    rows, width = ids.shape
    token = np.zeros(rows, np.uint32)
    possible = np.isfinite(logits.max(axis=1))
    greedy = (params.temperature == 0) | (params.top_k == 1)
    ordered = (params.top_k < width) | (params.top_p < 1)
    for kind, members in (
        (_draw_greedy, possible & greedy),
        (_draw_filtered, possible & ~greedy & ordered),
        (_draw_unfiltered, possible & ~greedy & ~ordered),
    ):
        some = np.flatnonzero(members)
        if len(some) == rows:
            token = kind(ids, logits, params)
        elif len(some):
            token[some] = kind(ids[some], logits[some], params.of(some))
    return Draws(token, possible)


def likeliest(ids: NDArray[np.uint32], logits: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Where the likeliest candidates of one row are, falling; among equals the lowest id first.

    Args:
        ids: [candidates].
        logits: [candidates].
        count: how many; fewer if there are fewer.

    Returns:
        [count] indices.
    """
    if count == 0:
        return np.zeros(0, np.intp)
    pool = np.arange(len(ids))
    if count < len(ids):
        pool = np.flatnonzero(logits >= np.partition(logits, len(ids) - count)[len(ids) - count])
    return pool[np.lexsort((ids[pool], -logits[pool]))][:count]


def _draw_greedy(ids: NDArray[np.uint32], logits: NDArray[np.float64], params: DrawParams) -> NDArray[np.uint32]:
    return _lowest_id_of_best(ids, logits)


def _draw_filtered(ids: NDArray[np.uint32], logits: NDArray[np.float64], params: DrawParams, head: int = _HEAD) -> NDArray[np.uint32]:
    table = _Table(ids, logits / params.temperature[:, None])
    ranked, complete = _rank(table, params, head)
    kept = _keep(ranked, table, params)
    token = _draw_kept(ranked, kept, params)
    # A nucleus that takes the whole head may go on behind it.
    again = np.flatnonzero(~complete & (kept | (ranked.scaled == -np.inf)).all(axis=1))
    if len(again):
        token[again] = _draw_filtered(ids[again], logits[again], params.of(again), _HEAD_GROWTH * head)
    return token


def _rank(table: _Table, params: DrawParams, head: int) -> tuple[_Table, NDArray[np.bool_]]:
    """The rows' likeliest candidates in falling order, and which rows need no others for certain: [rows]."""
    width = table.ids.shape[1]
    limited = params.top_k < width
    head = int(np.where(limited, params.top_k, head).max())
    if width <= _SORTED_WHOLE or head > width // 4:
        return _sort(table), np.ones(len(limited), np.bool_)
    # Partition puts the head-th likeliest at its place; its equals come along, for the lowest ids of them count.
    smallest = np.partition(table.scaled, width - head, axis=1)[:, width - head]
    return _sort(_compact(table, (table.scaled >= smallest[:, None]) & (table.scaled > -np.inf))), limited


def _keep(ranked: _Table, table: _Table, params: DrawParams) -> NDArray[np.bool_]:
    """What top-k, top-p and min-p leave of ranked rows: [rows, width], a prefix of each row."""
    best = ranked.scaled[:, :1]
    weights = np.exp(ranked.scaled - best)
    rank = np.arange(weights.shape[1])
    weights = np.where(rank < params.top_k[:, None], weights, 0.0)
    sums = np.cumsum(weights, axis=1)
    total = np.where(np.isnan(params.log_total), sums[:, -1], np.exp(params.log_total - best[:, 0]))
    # Without top-k the total is of the whole row, which need not be ranked whole: summed in the order it came.
    unknown = np.flatnonzero((params.top_k == KEEP_ALL) & np.isnan(params.log_total))
    total[unknown] = np.cumsum(np.exp(table.scaled[unknown] - best[unknown]), axis=1)[:, -1]
    before = np.zeros_like(sums)
    before[:, 1:] = sums[:, :-1]
    nucleus = (before < (params.top_p * total)[:, None]) | (params.top_p[:, None] == 1)
    kept: NDArray[np.bool_] = (weights > 0) & (weights >= params.min_p[:, None]) & nucleus
    return kept


def _draw_kept(ranked: _Table, kept: NDArray[np.bool_], params: DrawParams) -> NDArray[np.uint32]:
    width = int(kept.sum(axis=1).max())
    scaled = np.where(kept[:, :width], ranked.scaled[:, :width], -np.inf)
    return _draw_with_noise(_Table(ranked.ids[:, :width], scaled), params)


def _draw_unfiltered(ids: NDArray[np.uint32], logits: NDArray[np.float64], params: DrawParams) -> NDArray[np.uint32]:
    scaled = logits / params.temperature[:, None]
    behind = scaled - scaled.max(axis=1, keepdims=True)
    # Whoever is further behind than noise can reach is not drawn, and needs no noise.
    kept = behind > -GUMBEL_REACH
    if params.min_p.any():
        kept &= np.exp(behind) >= params.min_p[:, None]
    return _draw_with_noise(_compact(_Table(ids, scaled), kept), params)


def _draw_with_noise(table: _Table, params: DrawParams) -> NDArray[np.uint32]:
    return _lowest_id_of_best(table.ids, table.scaled + gumbel(params.seed, params.position, table.ids))


def _lowest_id_of_best(ids: NDArray[np.uint32], keys: NDArray[np.float64]) -> NDArray[np.uint32]:
    lowest: NDArray[np.uint32] = np.where(keys == keys.max(axis=1, keepdims=True), ids, _NO_ID).min(axis=1)
    return lowest


def _sort(table: _Table) -> _Table:
    """Rows by falling scaled logit, then by rising id."""
    ids, scaled = table
    if (scaled[:, 1:] > scaled[:, :-1]).any():  # compute ranks candidates, and most rows stay as they came
        order = np.argsort(-scaled, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
        scaled = np.take_along_axis(scaled, order, axis=1)
    changes = scaled[:, 1:] != scaled[:, :-1]
    if (~changes & (ids[:, 1:] < ids[:, :-1])).any():
        # Equals have one number, which goes before the id.
        numbers = np.zeros(ids.shape, np.int64)
        np.cumsum(changes, axis=1, out=numbers[:, 1:])
        ids = (np.sort((numbers << _ID_BITS) | ids, axis=1) & _NO_ID).astype(np.uint32)
    return _Table(ids, scaled)


def _compact(table: _Table, kept: NDArray[np.bool_]) -> _Table:
    """The kept candidates of each row, moved together where it pays; all others have -inf."""
    counts = kept.sum(axis=1)
    width = int(counts.max())
    if 2 * width > kept.shape[1]:  # moving costs more than it saves
        return _Table(table.ids, np.where(kept, table.scaled, -np.inf))
    inside = np.arange(width) < counts[:, None]
    ids = np.zeros(inside.shape, np.uint32)
    scaled = np.full(inside.shape, -np.inf)
    ids[inside] = table.ids[kept]
    scaled[inside] = table.scaled[kept]
    return _Table(ids, scaled)
