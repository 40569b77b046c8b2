"""From all runs to medians, spread, ratios and a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests.bench.peers.contender import Figures
from tests.bench.summary import summary_of

PEER = "llama.cpp"
# Column to median and extremes.
Summary = dict[str, dict[str, float]]


class Row(NamedTuple):
    """One contender's figures.

    Attributes:
        maker: Whose it is.
        format: Of the weights.
        summary: Median and extremes by column.
    """

    maker: str
    format: str
    summary: Summary


def make_row(maker: str, format_: str, parts: Mapping[str, Sequence[Figures]]) -> Row:
    """Figures of all parts.

    Args:
        maker: Whose it is.
        format_: Of the weights.
        parts: By what was run, the figures of each run of it.
    """
    summary: Summary = {}
    for runs in parts.values():
        summary |= summary_of(runs)
    return Row(maker, format_, summary)


def best_of_peer(rows: Sequence[Row], column: str) -> float | None:
    """llama.cpp's best median of all its formats; None = it has none."""
    return max((row.summary[column]["median"] for row in rows if row.maker == PEER and column in row.summary), default=None)


def ratios(rows: Sequence[Row], columns: Sequence[str]) -> list[dict[str, float]]:
    """Of each row, by column: its median of llama.cpp's best."""
    found: list[dict[str, float]] = []
    for row in rows:
        best = {column: best_of_peer(rows, column) for column in columns if column in row.summary}
        found.append({column: round(row.summary[column]["median"] / one, 3) for column, one in best.items() if one})
    return found


def as_markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Tokens per second, and in brackets of llama.cpp's best in that column."""
    lines = [f"| tok/s | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, of_best in zip(rows, ratios(rows, columns), strict=True):
        cells = []
        for column in columns:
            if column not in row.summary:
                cells.append("-")
                continue
            ratio = f" ({of_best[column]:.2f})" if column in of_best else ""
            cells.append(f"{row.summary[column]['median']:.0f}{ratio}")
        lines.append(f"| {row.maker} {row.format} | {' | '.join(cells)} |")
    return "\n".join(lines)
