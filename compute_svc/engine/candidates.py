"""Draws greedy rows on the device and picks, for the others, the logits that make a draw elsewhere exact.

From a device, what rows draw of which nothing else is wanted comes in one read, and so do all rows whose number of candidates is known
beforehand, with what is drawn of them. Rows whose number of candidates depends on their logits take a read per look, all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.draw_rule import DEFAULT_LIMITS, NEVER, CandidateLimits, DrawRule, Ids, Logits
from compute_svc.kernels.host_copy import read_once, rows_of, to_device


class Drawn(NamedTuple):
    """Greedy tokens of some rows.

    Attributes:
        tokens: The lowest of the ids with the largest logit.
        is_finite: Whether that logit is a number; a row without one is broken.
    """

    tokens: list[int]
    is_finite: list[bool]


class Candidates(NamedTuple):
    """What a sampler needs of some rows, in the order of the rows.

    Attributes:
        counts: [rows] int64, number of candidates of each.
        ids: [sum of counts] uint32; in each row by falling logit, then by rising id; watched ids not among these follow, rising.
            A row that has all ids has them rising.
        logits: [sum of counts] float32, as the model gave them.
        log_sum_exp: [rows] float32, of the full row.
        is_finite: [rows] bool; a row whose largest logit is not a number is broken and has no candidates.
        best: [rows] int64, the token `draw_greedy` draws, where a rule says that this is done here; else undefined, as in broken rows.
    """

    counts: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint32]
    logits: npt.NDArray[np.float32]
    log_sum_exp: npt.NDArray[np.float32]
    is_finite: npt.NDArray[np.bool_]
    best: Ids


class Top(NamedTuple):
    """The likeliest ids of some rows: by falling logit, then by rising id, also where the cut falls between equal logits.

    Attributes:
        ids: [rows, k] int64.
        logits: [rows, k] float32.
    """

    ids: Ids
    logits: Logits


def draw_greedy(logits: torch.Tensor) -> Drawn:
    """The likeliest token of each row; the lowest id wins a tie.

    Args:
        logits: [rows, width] float32.
    """
    if logits.device.type == "cpu":
        # numpy's argmax is an order of magnitude faster than torch's, one row after the other.
        values = logits.numpy()
        tokens = values.argmax(axis=1)
        best = values[np.arange(tokens.size), tokens]
        return Drawn(tokens.tolist(), np.isfinite(best).tolist())
    ids = logits.argmax(dim=1)
    tokens, best = read_once(ids[:, None], logits.gather(1, ids[:, None]))
    return Drawn(tokens[:, 0].tolist(), np.isfinite(best[:, 0]).tolist())


def select_candidates(
    logits: torch.Tensor, rules: Sequence[DrawRule], positions: Sequence[int], limits: CandidateLimits = DEFAULT_LIMITS
) -> Candidates:
    """Picks of each row the candidates that make the draw exact.

    Args:
        logits: [rows, width] float32.
        rules: Of each row's request.
        positions: Of each row's token.
        limits: How far to look; the rules' own.

    Effects: rules remember rows that needed all ids.
    """
    fixed = [rule.fixed_length(position) for rule, position in zip(rules, positions, strict=True)]
    lengths = np.array([length or 0 for length in fixed])
    if None in fixed or lengths.max() > limits.most:
        return _select_by_looking(logits, rules, positions, limits)
    top, log_sum_exp = _top_and_sum(logits, max(1, int(lengths.max())))
    is_finite = np.isfinite(log_sum_exp)
    counts = np.where(is_finite, lengths, 0)
    in_front = np.arange(top.ids.shape[1]) < counts[:, None]
    return Candidates(counts, top.ids[in_front].astype(np.uint32), top.logits[in_front], log_sum_exp, is_finite, top.ids[:, 0])


def _select_by_looking(logits: torch.Tensor, rules: Sequence[DrawRule], positions: Sequence[int], limits: CandidateLimits) -> Candidates:
    log_sum_exp: Logits = _log_sum_exp(logits).cpu().numpy()
    picked = _pick_rows(logits, rules, positions, log_sum_exp, limits)
    counts = np.array([ids.size for ids, _ in picked], dtype=np.int64)
    ids = np.concatenate([ids for ids, _ in picked]).astype(np.uint32, copy=False)
    values = np.concatenate([values for _, values in picked])
    is_drawn_here = any(rule.drawn_from != NEVER for rule in rules)
    best = np.array(draw_greedy(logits).tokens, dtype=np.int64) if is_drawn_here else np.zeros(len(rules), dtype=np.int64)
    return Candidates(counts, ids, values, log_sum_exp, np.isfinite(log_sum_exp), best)


def top_of_rows(logits: torch.Tensor, k: int) -> Top:
    """The k likeliest ids of each row, equal logits by rising id.

    Args:
        logits: [rows, width] float32; rows whose largest logit is not a number come back in no order.
        k: At least 1.
    """
    found = _topk(logits, k)
    if logits.device.type == "cpu":
        return _settle_ties(logits, found.indices.numpy(), found.values.numpy(), k)
    values, ids = read_once(found.values, found.indices)
    return _settle_ties(logits, ids, values, k)


def _top_and_sum(logits: torch.Tensor, k: int) -> tuple[Top, Logits]:
    """What `top_of_rows` gives, and [rows] float32, the log-sum-exp."""
    sums = _log_sum_exp(logits)
    if logits.device.type == "cpu":
        return top_of_rows(logits, k), sums.numpy()
    found = _topk(logits, k)
    values, ids, log_sum_exp = read_once(found.values, found.indices, sums[:, None])
    return _settle_ties(logits, ids, values, k), log_sum_exp[:, 0]


def _topk(logits: torch.Tensor, k: int) -> torch.return_types.topk:
    # One more than asked for tells whether the cut falls between equal logits: topk takes any of those.
    return logits.topk(min(k + 1, logits.shape[1]), dim=1)


def _settle_ties(logits: torch.Tensor, ids: Ids, values: Logits, k: int) -> Top:
    """The first k of what `_topk` found, equal logits by rising id. Rows where the cut falls between equal logits are looked at again."""
    width = logits.shape[1]
    k = min(k, width)
    tied = values[:, 1:] == values[:, :-1]
    if not tied.any():
        return Top(ids[:, :k], values[:, :k])
    if k < width:
        for row in np.flatnonzero(tied[:, k - 1]).tolist():
            level = values[row, k]
            above = int(np.count_nonzero(values[row] > level))
            equal = torch.nonzero(logits[row] == float(level))[: k - above, 0]
            ids[row, above:k] = equal.cpu().numpy()
        values, ids = values[:, :k], ids[:, :k]
    order = np.lexsort((ids, -values))
    return Top(np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1))


def _pick_rows(
    logits: torch.Tensor,
    rules: Sequence[DrawRule],
    positions: Sequence[int],
    log_sum_exp: npt.NDArray[np.float32],
    limits: CandidateLimits,
) -> list[tuple[npt.NDArray[np.integer[Any]], Logits]]:
    """Candidates of rows whose number depends on their logits: looks at a few, at more where that is cheap beside all, takes all."""
    width = logits.shape[1]
    picked: dict[int, tuple[npt.NDArray[np.integer[Any]], Logits]] = {}
    open_rows = []
    for row, is_finite in enumerate(np.isfinite(log_sum_exp).tolist()):
        if is_finite:
            open_rows.append(row)
        else:
            picked[row] = (np.empty(0, np.int64), np.empty(0, np.float32))
    first = {row: rules[row].first_width(positions[row]) for row in open_rows}
    narrow = [row for row in open_rows if first[row] <= limits.most]
    others: dict[int, Ids] = {}
    for k in (max((first[row] for row in narrow), default=width), limits.most):
        if not narrow or k * limits.share > width:
            break
        top = top_of_rows(rows_of(logits, narrow), k)
        for index, row in enumerate(narrow):
            length = rules[row].length(top.ids[index], top.logits[index], float(log_sum_exp[row]), positions[row])
            if length is not None:
                picked[row] = (top.ids[index, :length], top.logits[index, :length])
                if rules[row].watches:
                    others[row] = np.setdiff1d(rules[row].watched(), top.ids[index, :length], assume_unique=True)
        narrow = [row for row in narrow if row not in picked]
    for row, values in _values_at(logits, others).items():
        picked[row] = (np.concatenate((picked[row][0], others[row])), np.concatenate((picked[row][1], values)))
    whole = [row for row in open_rows if row not in picked]
    everything = np.arange(width, dtype=np.uint32)
    for row, values in zip(whole, _whole_rows(logits, whole), strict=True):
        rules[row].needed_all(positions[row])
        # As if all ids were watched: in rising order, which spares a sort of the row.
        picked[row] = (everything, values)
    return [picked[row] for row in range(logits.shape[0])]


def _values_at(logits: torch.Tensor, ids: dict[int, Ids]) -> dict[int, Logits]:
    """The logits of some ids of some rows, by row."""
    if not ids:
        return {}
    lengths = [one.size for one in ids.values()]
    rows = np.repeat(np.array(list(ids), dtype=np.int64), lengths)
    places = to_device([rows, np.concatenate(list(ids.values()))], logits.device)
    values: Logits = logits[places[0], places[1]].cpu().numpy()
    return dict(zip(ids, np.split(values, np.cumsum(lengths)[:-1]), strict=True))


def _whole_rows(logits: torch.Tensor, rows: Sequence[int]) -> Sequence[Logits]:
    if logits.device.type == "cpu":
        return [logits[row].numpy() for row in rows]
    return list(rows_of(logits, rows).cpu().numpy()) if rows else []


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """[rows] float32, on the logits' device, NaN for rows without a finite largest logit.

    Summed in float64, so that the rounded result does not depend on how a backend splits the rows of a batch.
    """
    peak = logits.amax(dim=1, keepdim=True)
    total = (logits - peak).exp_().sum(dim=1, dtype=torch.float64)
    return (total.log_() + peak[:, 0]).to(torch.float32)
