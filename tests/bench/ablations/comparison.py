"""A switch that is on and off in turns, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.summary import summary_of

Figures = dict[str, float]


class Comparison(NamedTuple):
    """One row of the table.

    Attributes:
        ablation: What is switched.
        case: On what.
        off: The other way.
        on: The way whose worth is claimed.
        figure: What is compared; where lower is better its name ends in "_ms".
        claim: What is said of it.
        checked: What was found right before anything was measured.
        values: Of both, median and extremes over the rounds.
        ratio: How many times better on is, round by round: median and extremes.
    """

    ablation: str
    case: str
    off: str
    on: str
    figure: str
    claim: str
    checked: str
    values: Mapping[str, Mapping[str, float]]
    ratio: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """For the results file."""
        return self._asdict()


class Subject(NamedTuple):
    """What rows of one ablation have in common; see `Comparison`."""

    ablation: str
    case: str
    claim: str
    checked: str

    def rows(self, runs: Mapping[str, Sequence[Figures]], figures: Sequence[str]) -> Iterator[Comparison]:
        """A row for each figure and each way but the first.

        Args:
            runs: Figures of each round, by way; the first is what the others are compared with.
            figures: Those that get a row.
        """
        off, *ways = runs
        summaries = {way: summary_of(of) for way, of in runs.items()}
        for on in ways:
            for figure in figures:
                ratios = [{"ratio": _better(one[figure], other[figure], figure)} for one, other in zip(runs[on], runs[off], strict=True)]
                values = {way: summaries[way][figure] for way in (off, on)}
                yield Comparison(self.ablation, self.case, off, on, figure, self.claim, self.checked, values, summary_of(ratios)["ratio"])


def in_turns(ways: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Figures of each round, by way: what else the machine does meets all of them alike."""
    runs: dict[str, list[Figures]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            runs[way].append(run())
    return runs


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for people, of rows as the results file has them: medians, and extremes of the ratio in brackets."""
    lines = ["| switch | case | figure | off | on | on / off | claim | checked |", "|---" * 8 + "|"]
    for row in rows:
        off, on = (f"{row[way]}: {row['values'][row[way]]['median']:.4g}" for way in ("off", "on"))
        ratio = f"{row['ratio']['median']:.2f} ({row['ratio']['min']:.2f}-{row['ratio']['max']:.2f})"
        figure = row["figure"].replace("_", " ")
        lines.append(f"| {row['ablation']} | {row['case']} | {figure} | {off} | {on} | {ratio} | {row['claim']} | {row['checked']} |")
    return "\n".join(lines) + "\n"


def _better(on: float, off: float, figure: str) -> float:
    better, worse = (off, on) if figure.endswith("_ms") else (on, off)
    return better / worse
