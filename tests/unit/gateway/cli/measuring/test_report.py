"""Figures of a run."""

from __future__ import annotations

import dataclasses
import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.measuring.measurement import Failed, Measured, Outcome, Wrong
from gateway.cli.measuring.report import WrongAnswers, as_table, distribution, make_report, percentile
from gateway.cli.measuring.workload import PlannedRequest

values = st.lists(st.floats(0, 1e6), min_size=2, max_size=30)


def request(index: int, *, prompt: int = 2, output: int = 3) -> PlannedRequest:
    return PlannedRequest(index=index, arrival_s=0.0, prompt_token_ids=[1] * prompt, output_tokens=output)


def measured(index: int, *, sent: float = 0.0, at: tuple[float, ...] = (1.0, 2.0, 3.0)) -> Measured:
    return Measured(request=request(index, output=len(at)), sent_at_s=sent, delta_at_s=at, delta_tokens=(1,) * len(at), prompt_tokens=2)


@given(values, st.integers(1, 99))
def test_percentiles_agree_with_the_standard_library(numbers: list[float], percent: int) -> None:
    expected = statistics.quantiles(numbers, n=100, method="inclusive")[percent - 1]
    assert percentile(sorted(numbers), percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(values)
def test_percentiles_rise_and_stay_between_least_and_most(numbers: list[float]) -> None:
    ordered = sorted(numbers)
    got = [percentile(ordered, percent) for percent in (0, 10, 50, 90, 99, 100)]
    assert all(before <= after * (1 + 1e-12) for before, after in itertools.pairwise(got))
    assert (got[0], got[-1]) == (ordered[0], ordered[-1])


def test_a_single_value_is_every_percentile() -> None:
    figures = distribution([0.25])
    assert figures is not None
    assert (figures.mean, figures.p50, figures.p99, figures.max) == (250, 250, 250, 250)


def test_nothing_measured_has_no_distribution() -> None:
    assert distribution([]) is None


def test_throughput_counts_from_the_first_sending_to_the_last_token() -> None:
    report = make_report([measured(0, sent=1.0, at=(2.0, 3.0)), measured(1, sent=2.0, at=(4.0, 5.0))])
    assert (report.duration_s, report.requests_per_s, report.output_tokens_per_s, report.total_tokens_per_s) == (4.0, 0.5, 1.0, 2.0)
    assert (report.prompt_tokens, report.output_tokens, report.tokens_per_delta) == (4, 4, 1.0)


def test_failures_are_counted_by_reason_and_are_in_no_figure() -> None:
    outcomes: list[Outcome] = [measured(0), Failed(request(1), "full"), Failed(request(2), "full"), Failed(request(3), "gone")]
    report = make_report(outcomes)
    assert (report.completed, report.num_requests, report.failed) == (1, 4, {"full": 2, "gone": 1})
    assert report.ttft_ms == make_report([measured(0)]).ttft_ms


def test_a_run_with_failures_alone_is_reported() -> None:
    report = make_report([Failed(request(0), "gone")])
    assert (report.completed, report.requests_per_s, report.ttft_ms) == (0, 0.0, None)
    assert "1 x gone" in as_table(report)


def test_one_wrong_answer_leaves_nothing_to_report() -> None:
    with pytest.raises(WrongAnswers, match=r"1 of 2 answers are wrong, the first \(request 1\): 2 tokens came"):
        make_report([measured(0), Wrong(request(1), "2 tokens came")])


def test_the_table_shows_every_quantity() -> None:
    table = as_table(make_report([measured(0)]))
    assert all(name in table for name in ("TTFT", "TPOT", "ITL", "E2E", "p50", "p90", "p99", "mean"))


def test_prompts_that_one_server_did_not_count_are_in_no_sum() -> None:
    uncounted = dataclasses.replace(measured(1), prompt_tokens=None, is_counted=False)
    report = make_report([measured(0), uncounted])
    assert (report.prompt_tokens, report.total_tokens_per_s, report.output_tokens, report.uncounted) == (None, None, 6, 1)
    table = as_table(report)
    assert "1 answers came without usage" in table and " in and out per s" not in table


def test_answers_that_end_early_are_told_of() -> None:
    short = dataclasses.replace(measured(0), request=request(0, output=9))
    assert "1 answers ended before the length that was asked for" in as_table(make_report([short]))
