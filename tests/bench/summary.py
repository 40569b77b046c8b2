"""Several runs' figures as one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def summary_of(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median and extremes of each figure over the runs."""
    values = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        name: {"median": round(statistics.median(of), 3), "min": round(min(of), 3), "max": round(max(of), 3)} for name, of in values.items()
    }
