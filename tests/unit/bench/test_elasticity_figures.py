"""Figures of the benchmark of elasticity, and their picture."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from tests.bench.elastic.elasticity_plot import drawn
from tests.bench.elastic.load import Outcome, Phase
from tests.bench.elastic.summary import beyond, by_second, percentile, summary

PHASES = (Phase(10, 1.0), Phase(20, 4.0), Phase(10, 1.0))


def _outcomes() -> list[Outcome]:
    """Chats of 0.2 s to their first token; those that come from 10 s on wait for three seconds, and two at 25 s."""
    return [Outcome(at_s, 2.0 if 10 <= at_s < 13 or at_s == 25 else 0.2, 3.0, 5, None) for at_s in range(40)]


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 201)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (100, 198, 200)
    assert percentile([3.0], 0.01) == 3.0
    assert percentile([], 0.5) is None


def test_a_second_tells_of_chats_that_were_due_in_it_and_of_the_first_tokens_of_the_last_five() -> None:
    rows = by_second(_outcomes(), 40)
    assert [row["arrived"] for row in rows] == [1] * 40
    assert [row["at_s"] for row in rows if row["ttft_p99_s"] == 2.0] == [*range(11, 18), *range(26, 31)]
    assert rows[12]["ttft_p50_s"] == 2.0 and rows[16]["ttft_p50_s"] == 0.2


def test_it_is_told_until_when_the_bound_was_broken_for_the_first_time_and_for_the_last() -> None:
    rows = by_second(_outcomes(), 40)
    assert beyond(rows, bound_s=1.0, begin_s=10, end_s=30) == {
        "bound_s": 1.0,
        "seconds": 12,
        "first_back_after_s": 7,
        "last_back_after_s": 20,
    }
    assert beyond(rows, bound_s=2.0, begin_s=10, end_s=30)["seconds"] == 0
    assert beyond(rows, bound_s=2.0, begin_s=10, end_s=30)["last_back_after_s"] is None


def test_a_chat_without_its_answer_is_counted_and_told() -> None:
    told = summary([*_outcomes(), Outcome(5.5, None, 1.0, 0, "ValueError: cut")], PHASES)
    assert (told["chats"], told["lost_or_wrong"], told["faults"]) == (41, 1, ["ValueError: cut"])
    assert [phase["chats"] for phase in told["phases"]] == [11, 20, 10]


def test_the_picture_is_one_that_browsers_read_and_names_every_line() -> None:
    pods = {stage: {"ready": 2, "all": 2, "leaving": 0} for stage in ("tokenizer", "sampler")}
    run: dict[str, Any] = {**summary(_outcomes(), PHASES), "by_second": by_second(_outcomes(), 40)}
    notes = [{"at_s": at_s, "pods": pods} for at_s in range(1, 40)]
    root = ElementTree.fromstring(drawn({**run, "notes": notes, "ttft_bound_s": 1.0, "ttft_window_s": 5, "without_autoscalers": run}))
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"tokenizers", "samplers", "mean", "p50", "p99", "bound of p99"} <= texts
