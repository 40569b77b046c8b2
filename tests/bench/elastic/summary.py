"""Figures of a run: what came of the chats, second by second, and how long the time to the first token was beyond its bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tests.bench.elastic.load import Outcome, Phase

# The last seconds that a percentile is of.
WINDOW_S = 5


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of them does not exceed; None where there are none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def by_second(outcomes: Sequence[Outcome], seconds: int) -> list[dict[str, Any]]:
    """Of each second: chats that were due in it, and the time to the first token of those due in the last `WINDOW_S`."""
    rows = []
    for second in range(seconds):
        recent = [one for one in outcomes if second + 1 - WINDOW_S <= one.at_s < second + 1]
        ttfts = [one.ttft_s for one in recent if one.ttft_s is not None]
        rows.append(
            {
                "at_s": second + 1,
                "arrived": sum(second <= one.at_s < second + 1 for one in outcomes),
                "ttft_p50_s": _rounded(percentile(ttfts, 0.5)),
                "ttft_p99_s": _rounded(percentile(ttfts, 0.99)),
            }
        )
    return rows


def beyond(rows: Sequence[dict[str, Any]], *, bound_s: float, begin_s: float, end_s: float) -> dict[str, Any]:
    """When, after `begin_s` and up to `end_s`, the p99 was above its bound.

    Returns:
        The bound; for how many seconds in all; until when, from `begin_s`, for the first time without a break and for the last time. None = never.
    """
    above = [row["at_s"] - begin_s for row in rows if begin_s < row["at_s"] <= end_s and (row["ttft_p99_s"] or 0.0) > bound_s]
    breaks = [second for second in above if second + 1 not in above]
    return {
        "bound_s": bound_s,
        "seconds": len(above),
        "first_back_after_s": breaks[0] if breaks else None,
        "last_back_after_s": breaks[-1] if breaks else None,
    }


def summary(outcomes: Sequence[Outcome], phases: Sequence[Phase]) -> dict[str, Any]:
    """What came of all chats, and of those of each phase."""
    faults = [one.fault for one in outcomes if one.fault is not None]
    begin_s, parts = 0.0, []
    for phase in phases:
        own = [one for one in outcomes if begin_s <= one.at_s < begin_s + phase.seconds]
        ttfts = [one.ttft_s for one in own if one.ttft_s is not None]
        parts.append(
            {
                "from_s": begin_s,
                "to_s": begin_s + phase.seconds,
                "chats_per_s": phase.rate,
                "chats": len(own),
                "tokens": sum(one.tokens for one in own),
                "ttft_s": {f"p{round(100 * share)}": _rounded(percentile(ttfts, share)) for share in (0.5, 0.9, 0.99, 1.0)},
            }
        )
        begin_s += phase.seconds
    return {
        "chats": len(outcomes),
        "lost_or_wrong": len(faults),
        "faults": sorted(set(faults))[:20],
        "phases": parts,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
