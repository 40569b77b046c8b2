"""Draws the results of the benchmark of elasticity: load, pods and the time to the first token over time, as an SVG that needs nothing to be drawn.

`python -m tests.bench.elastic.elasticity_plot` writes deploy/k8s/elasticity.svg.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.elastic.elasticity import RESULTS
from tests.deploy.manifests import K8S

OUTPUT = K8S / "elasticity.svg"
_LEFT, _RIGHT, _TOP, _GAP, _HEIGHT, _WIDTH = 52, 96, 34, 46, 150, 880
_STYLE = """
svg { --ink: #1c2024; --soft: #6b7280; --line: #d5d9df; --page: #ffffff; --first: #2060c0; --second: #c2410c; --third: #9aa4b2 }
@media (prefers-color-scheme: dark) {
 svg { --ink: #e6e9ed; --soft: #9aa4b2; --line: #363c44; --page: #14171b; --first: #7fb0ff; --second: #ff9d5c; --third: #5b6673 } }
.page { fill: var(--page) } text { font: 12px system-ui, sans-serif; fill: var(--soft) } .title { font-weight: 600; fill: var(--ink) }
.grid { stroke: var(--line); stroke-width: 1 } .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 4 }
.first { stroke: var(--first) } .second { stroke: var(--second) } .third { stroke: var(--third) } path { fill: none; stroke-width: 2 }
text.first { fill: var(--first); stroke: none } text.second { fill: var(--second); stroke: none }
text.third { fill: var(--soft); stroke: none } .bar { fill: var(--third) }
"""

Point = tuple[float, float]


class Panel(NamedTuple):
    """One diagram.

    Attributes:
        number: Of all, from the top.
        seconds: Its width.
        ticks: Values with a line and a label, the lowest and the highest of the scale among them.
        scale: Makes distances of values.
    """

    number: int
    seconds: float
    ticks: Sequence[float]
    scale: Callable[[float], float] = float

    @property
    def bottom(self) -> float:
        """Where its lowest value is."""
        return _TOP + self.number * (_HEIGHT + _GAP) + _HEIGHT

    def x(self, at_s: float) -> float:
        """Of a time."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / self.seconds

    def y(self, value: float) -> float:
        """Of a value; one off the scale is at its edge."""
        low, high = self.scale(self.ticks[0]), self.scale(self.ticks[-1])
        share = (self.scale(min(max(value, self.ticks[0]), self.ticks[-1])) - low) / (high - low)
        return self.bottom - _HEIGHT * share


def drawn(document: dict[str, Any]) -> str:
    """The whole SVG."""
    seconds = document["phases"][-1]["to_s"]
    panels = [*_load(document, seconds), *_pods(document, seconds), *_ttft(document, seconds)]
    height = _TOP + 3 * (_HEIGHT + _GAP)
    label = "Load, pods that are ready and time to the first token over time; the same as numbers in tests/bench/results/elasticity.json"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{height}" rx="6"/>',
            *panels,
            f'<text x="{_WIDTH - _RIGHT}" y="{height - 8}" text-anchor="end">seconds</text>',
            "</svg>",
            "",
        ]
    )


def _load(document: dict[str, Any], seconds: float) -> Iterable[str]:
    rows = document["by_second"]
    panel = Panel(0, seconds, _steps(max(row["arrived"] for row in rows)))
    yield from _frame(panel, document, "Chats that arrive, a second", "{:g}")
    width = panel.x(1) - panel.x(0)
    for row in rows:
        top = panel.y(row["arrived"])
        yield f'<rect class="bar" x="{panel.x(row["at_s"] - 1):.1f}" y="{top:.1f}" width="{width:.1f}" height="{panel.bottom - top:.1f}"/>'
    rates = [(at_s, phase["chats_per_s"]) for phase in document["phases"] for at_s in (phase["from_s"], phase["to_s"])]
    yield _path(panel, rates, "first")
    yield _name(panel, rates[-1], "mean", "first")


def _pods(document: dict[str, Any], seconds: float) -> Iterable[str]:
    notes = [note for note in document["notes"] if note["at_s"] <= seconds]
    panel = Panel(1, seconds, _steps(max(pods["ready"] for note in notes for pods in note["pods"].values())))
    yield from _frame(panel, document, "Pods that are ready", "{:g}")
    ends: dict[str, Point] = {}
    for stage, name in (("tokenizer", "first"), ("sampler", "second")):
        counts = [(float(note["at_s"]), note["pods"][stage]["ready"]) for note in notes]
        changes = [((at_s, before), (at_s, count)) for (_, before), (at_s, count) in pairwise(counts) if count != before]
        yield _path(panel, [(0.0, counts[0][1]), *(corner for change in changes for corner in change), (seconds, counts[-1][1])], name)
        ends[stage] = (seconds, counts[-1][1])
    apart = 7 if abs(ends["tokenizer"][1] - ends["sampler"][1]) < 1 else 0
    yield _name(panel, ends["tokenizer"], "tokenizers", "first", down=-apart)
    yield _name(panel, ends["sampler"], "samplers", "second", down=apart)


def _ttft(document: dict[str, Any], seconds: float) -> Iterable[str]:
    runs = {"scaled": document["by_second"], "fixed": document["without_autoscalers"]["by_second"]}
    runs = {which: [row for row in rows if row["ttft_p99_s"] is not None] for which, rows in runs.items()}
    highest = max(row["ttft_p99_s"] for rows in runs.values() for row in rows)
    lowest = min(row["ttft_p50_s"] for rows in runs.values() for row in rows)
    decades = [10.0**power for power in range(math.floor(math.log10(lowest)), max(1, math.ceil(math.log10(highest))) + 1)]
    panel = Panel(2, seconds, decades, math.log10)
    title = f"Time to the first token of those that arrived in the last {document['ttft_window_s']} s, seconds"
    yield from _frame(panel, document, title, "{:g}")
    bound = document["ttft_bound_s"]
    yield f'<line class="second" stroke-dasharray="2 4" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{panel.y(bound):.1f}" y2="{panel.y(bound):.1f}"/>'
    yield f'<text class="second" x="{_LEFT + 6}" y="{panel.y(bound) - 5:.1f}">bound of p99</text>'
    for which, share, name in (("fixed", "p99", "third"), ("scaled", "p50", "first"), ("scaled", "p99", "second")):
        points = [(row["at_s"], row[f"ttft_{share}_s"]) for row in runs[which]]
        yield _path(panel, points, name)
        label, down = {"p50": ("p50", 7), "p99": ("p99", -7)}[share] if which == "scaled" else ("p99 if no pod is added", -10)
        yield _name(panel, points[-1], label, name, down=down)


def _frame(panel: Panel, document: dict[str, Any], title: str, form: str) -> Iterable[str]:
    yield f'<text class="title" x="{_LEFT}" y="{panel.bottom - _HEIGHT - 10:.1f}">{escape(title)}</text>'
    for tick in panel.ticks:
        y = panel.y(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{form.format(tick)}</text>'
    for phase in document["phases"][1:]:
        x = panel.x(phase["from_s"])
        yield f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{panel.bottom - _HEIGHT:.1f}" y2="{panel.bottom:.1f}"/>'
    step = 20 if panel.seconds <= 300 else 60
    for at_s in range(0, int(panel.seconds) + 1, step):
        yield f'<text x="{panel.x(at_s):.1f}" y="{panel.bottom + 16:.1f}" text-anchor="middle">{at_s}</text>'


def _path(panel: Panel, points: Sequence[Point], name: str) -> str:
    places = " L".join(f"{panel.x(at_s):.1f} {panel.y(value):.1f}" for at_s, value in points)
    return f'<path class="{name}" d="M{places}"/>'


def _name(panel: Panel, point: Point, text: str, name: str, *, down: float = 0.0) -> str:
    """What a line is, at its end."""
    return f'<text class="{name}" x="{panel.x(point[0]) + 6:.1f}" y="{panel.y(point[1]) + 4 + down:.1f}">{escape(text)}</text>'


def _steps(highest: float) -> list[float]:
    """Four or five round values from 0 to what is above the highest."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100) if step * 5 >= highest)
    return [float(step * index) for index in range(math.ceil(highest / step) + 1)]


def main() -> None:
    """Reads the results and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    arguments.output.write_text(drawn(json.loads(arguments.results.read_text())))


if __name__ == "__main__":
    main()
