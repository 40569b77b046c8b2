"""A workload is a function of its arguments, in the bounds they set."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.measuring.workload import BUNDLED_LENGTHS, Lengths, PlannedRequest, WorkloadConfig, make_workload, read_lengths

LENGTHS = [Lengths(3, 4), Lengths(1, 1), Lengths(10, 7)]


def make(lengths: list[Lengths] = LENGTHS, vocab_size: int = 50, **settings: float | None) -> list[PlannedRequest]:
    return make_workload(WorkloadConfig(**{"num_requests": 20, **settings}), lengths, vocab_size=vocab_size)  # type: ignore[arg-type]


@given(st.integers(0, 2**64), st.none() | st.floats(0.1, 100))
def test_the_same_seed_gives_the_same_requests(seed: int, rate: float | None) -> None:
    assert make(seed=seed, rate=rate) == make(seed=seed, rate=rate)


def test_a_workload_never_changes_from_version_to_version() -> None:
    first, second = make(seed=7, num_requests=2, rate=1.0)
    assert (first.arrival_s, first.prompt_token_ids, first.output_tokens) == (0.0, [35, 3, 42], 4)
    assert second.arrival_s == pytest.approx(0.3239041858394839)


def test_another_seed_gives_other_requests() -> None:
    assert make(seed=1) != make(seed=2)


def test_the_rate_changes_arrivals_alone() -> None:
    closed, opened = make(), make(rate=5.0)
    assert [(one.prompt_token_ids, one.output_tokens) for one in closed] == [(one.prompt_token_ids, one.output_tokens) for one in opened]
    assert {one.arrival_s for one in closed} == {0.0}


@given(st.integers(0, 1000), st.floats(0.1, 1000))
def test_arrivals_begin_at_once_and_rise(seed: int, rate: float) -> None:
    arrivals = [one.arrival_s for one in make(seed=seed, rate=rate)]
    assert arrivals[0] == 0
    assert all(before <= after for before, after in pairwise(arrivals))


def test_gaps_have_the_mean_that_the_rate_says() -> None:
    arrivals = [one.arrival_s for one in make(num_requests=4000, rate=10.0)]
    assert arrivals[-1] / 3999 == pytest.approx(0.1, rel=0.1)


@given(st.integers(0, 1000), st.integers(1, 100))
def test_all_ids_are_below_the_vocabulary_size(seed: int, vocab_size: int) -> None:
    ids = {token for one in make(seed=seed, vocab_size=vocab_size) for token in one.prompt_token_ids}
    assert min(ids) >= 0 and max(ids) < vocab_size


@given(st.floats(0.01, 20), st.integers(1, 9), st.integers(1, 9))
def test_lengths_are_scaled_then_capped_and_never_below_one(scale: float, max_prompt: int, max_output: int) -> None:
    for one in make(scale=scale, max_prompt=max_prompt, max_output=max_output):
        assert 1 <= len(one.prompt_token_ids) <= max_prompt
        assert 1 <= one.output_tokens <= max_output


def test_each_pair_of_lengths_comes_once_before_any_comes_again() -> None:
    pairs = [(len(one.prompt_token_ids), one.output_tokens) for one in make(num_requests=6)]
    assert sorted(pairs[:3]) == sorted(pairs[3:]) == sorted(LENGTHS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_requests", 0),
        ("rate", 0),
        ("rate", -1),
        ("rate", float("nan")),
        ("scale", 0),
        ("max_prompt", 0),
        ("max_output", -1),
        ("scale", float("inf")),
    ],
)
def test_a_value_that_makes_no_workload_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}, it must be above 0"):
        make(**{name: value})  # type: ignore[arg-type]


def test_the_bundled_lengths_are_those_of_1024_conversations() -> None:
    lengths = read_lengths(BUNDLED_LENGTHS)
    assert (len(lengths), lengths[0], sum(one.output for one in lengths)) == (1024, (11, 845), 328942)


def test_lengths_may_come_without_a_header(tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("3,4\n5,6\n")
    assert read_lengths(file) == [(3, 4), (5, 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3,4\n5\n", ":2: '5' is not two whole numbers"),
        ("a,b\n", ":1: 'a,b'"),
        ("1,0\n", ":1: a length is below 1"),
        ("", "has no lengths"),
    ],
)
def test_a_bad_file_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lengths(file)


def test_it_can_be_imported_where_there_is_no_web_client() -> None:
    code = "import sys, gateway.cli.measuring.workload; sys.exit(bool({'aiohttp', 'grpc', 'torch', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[5])
