"""From the times of all requests to the figures of a run: a table for people, an object for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.cli.measuring.measurement import Failed, Measured, Outcome, Wrong


class WrongAnswers(Exception):
    """Some answers were not what was asked for, so there is nothing to report."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Figures of one quantity, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures of one run."""

    num_requests: int
    completed: int
    # Reasons, and how often each.
    failed: dict[str, int]
    # From the first request's sending to the last token of all.
    duration_s: float
    # None = the server did not tell of every request.
    prompt_tokens: int | None
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float | None
    # Time to first token, time per later token of a request, gap between deltas, whole request. None if nothing was measured.
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    # How many tokens a delta had on average; above 1 the server merged some.
    tokens_per_delta: float
    # Answers whose tokens the server did not count: each of their deltas counts as one.
    uncounted: int
    # Answers that ended before they had as many tokens as were asked for.
    shorter: int

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def make_report(outcomes: Sequence[Outcome]) -> Report:
    """The figures of a run.

    Raises:
        WrongAnswers: a server that answers something else than asked is not measured; says what was wrong.
    """
    wrong = [outcome for outcome in outcomes if isinstance(outcome, Wrong)]
    if wrong:
        raise WrongAnswers(
            f"{len(wrong)} of {len(outcomes)} answers are wrong, the first (request {wrong[0].request.index}): {wrong[0].reason}"
        )
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measured)]
    failed = Counter(outcome.reason for outcome in outcomes if isinstance(outcome, Failed))
    began = min((one.sent_at_s for one in measured), default=0.0)
    duration_s = max((one.delta_at_s[-1] for one in measured), default=0.0) - began
    told = [one.prompt_tokens for one in measured if one.prompt_tokens is not None]
    prompt_tokens = sum(told) if len(told) == len(measured) else None
    output_tokens = sum(one.output_tokens for one in measured)
    num_deltas = sum(len(one.delta_at_s) for one in measured)

    def per_s(count: int) -> float:
        return count / duration_s if duration_s > 0 else 0.0

    return Report(
        num_requests=len(outcomes),
        completed=len(measured),
        failed=dict(failed.most_common()),
        duration_s=duration_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        requests_per_s=per_s(len(measured)),
        output_tokens_per_s=per_s(output_tokens),
        total_tokens_per_s=None if prompt_tokens is None else per_s(prompt_tokens + output_tokens),
        ttft_ms=distribution([one.ttft_s for one in measured]),
        tpot_ms=distribution([one.tpot_s for one in measured if one.tpot_s is not None]),
        itl_ms=distribution([gap for one in measured for gap in one.itl_s]),
        e2e_ms=distribution([one.e2e_s for one in measured]),
        tokens_per_delta=output_tokens / num_deltas if num_deltas else 0.0,
        uncounted=sum(not one.is_counted for one in measured),
        shorter=sum(one.output_tokens < one.request.output_tokens for one in measured),
    )


def distribution(seconds: Sequence[float]) -> Distribution | None:
    """Figures of some times; None if there are none."""
    if not seconds:
        return None
    ordered = sorted(value * 1000 for value in seconds)
    return Distribution(
        mean=math.fsum(ordered) / len(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p99=percentile(ordered, 99),
        max=ordered[-1],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value below which that share of the values lies, by linear interpolation between the two nearest.

    Args:
        ordered: rising, at least one.
        percent: in [0, 100].
    """
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def as_table(report: Report) -> str:
    """The report for people."""
    tokens = f"{report.output_tokens} out; {report.output_tokens_per_s:.1f} out per s"
    if report.prompt_tokens is not None:
        tokens = f"{report.prompt_tokens} in, {tokens}, {report.total_tokens_per_s:.1f} in and out per s"
    lines = [
        f"requests   {report.completed} of {report.num_requests} completed in {report.duration_s:.2f} s, {report.requests_per_s:.2f} per s",
        f"tokens     {tokens}; {report.tokens_per_delta:.2f} per delta",
        *_notes(report),
        *(f"failed     {count} x {reason}" for reason, count in report.failed.items()),
        f"{'ms':<10}{'mean':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    for name, figures in (("TTFT", report.ttft_ms), ("TPOT", report.tpot_ms), ("ITL", report.itl_ms), ("E2E", report.e2e_ms)):
        if figures is not None:
            values = (figures.mean, figures.p50, figures.p90, figures.p99, figures.max)
            lines.append(f"{name:<10}" + "".join(f"{value:>10.2f}" for value in values))
    return "\n".join(lines)


def _notes(report: Report) -> list[str]:
    """What one must know of the figures."""
    notes = []
    if report.uncounted:
        notes.append(f"note       {report.uncounted} answers came without usage: each piece of their text counts as one token")
    if report.shorter:
        notes.append(f"note       {report.shorter} answers ended before the length that was asked for: this server was not told to go on")
    return notes
