"""The comparison with other engines: what it is told, what it reads, and what it makes of figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.cli.measuring.http_transcript import Response, TimedEvent
from gateway.cli.measuring.measurement import Measured, Wrong
from gateway.cli.measuring.workload import PlannedRequest
from tests.bench.peers.llama_cpp import read_batched, read_bench, version
from tests.bench.peers.load import read_times
from tests.bench.peers.ours import parse_format
from tests.bench.peers.table import Row, as_markdown, make_row, ratios

TINY = Path(__file__).parents[2] / "tiny_model"
PLANNED = PlannedRequest(0, 0.0, [5, 6], 3)


def _response(*events: object) -> Response:
    timed = [TimedEvent(float(second), json.dumps(event).encode()) for second, event in enumerate(events, start=1)]
    return Response(200, [*timed, TimedEvent(9.0, b"[DONE]")], b"")


def _usage(prompt: int, answer: int) -> dict[str, object]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": answer}}


def _row(maker: str, **medians: float) -> Row:
    return Row(maker, "x", {name: {"median": value, "min": value, "max": value} for name, value in medians.items()})


def test_a_format_is_a_name_a_folder_and_settings() -> None:
    found = parse_format(f"int8={TINY}:COMPUTE_DTYPE=bfloat16,COMPUTE_THREADS=1", Path("elsewhere"))
    assert (found.format, found.folder, found.settings) == ("int8", TINY, {"COMPUTE_DTYPE": "bfloat16", "COMPUTE_THREADS": "1"})


def test_a_format_without_a_folder_is_of_the_default_model() -> None:
    assert parse_format("float32=", TINY).folder == TINY
    assert parse_format("float32=:COMPUTE_DTYPE=float32", TINY).settings == {"COMPUTE_DTYPE": "float32"}


@pytest.mark.parametrize("text", ["float32", "=:A=1", "x=:COMPUTE_DTYPE", "x=:=1", "x=/no/such/folder"])
def test_what_is_no_format_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_format(text, TINY)


def test_figures_are_read_from_what_the_programs_of_llama_cpp_print() -> None:
    assert read_bench('[{"n_prompt": 512, "n_gen": 0, "avg_ts": 700.5}]') == 700.5
    lines = 'main: something\n{"pl": 1, "speed_pp": 9.0, "speed_tg": 100.0}\n{"pl": 16, "speed_pp": 9.0, "speed_tg": 400.0}\n\n'
    assert read_batched(lines) == {1: 100.0, 16: 400.0}


def test_the_version_is_that_of_the_requirements() -> None:
    assert version()["package"].startswith("llama-cpp-python==") and len(version()["commit"]) == 7


def test_an_answer_of_the_right_length_has_its_times_and_as_many_tokens_as_the_server_counted() -> None:
    choice = {"choices": [{"text": "a", "finish_reason": None}]}
    found = read_times(PLANNED, 0.5, _response(choice, choice, _usage(2, 3)))
    assert isinstance(found, Measured)
    assert (found.ttft_s, found.e2e_s, found.output_tokens) == (0.5, 1.5, 3)


@pytest.mark.parametrize("counted", [(2, 2), (2, 4), (3, 3)])
def test_an_answer_of_another_length_is_wrong(counted: tuple[int, int]) -> None:
    choice = {"choices": [{"text": "a", "finish_reason": None}]}
    assert isinstance(read_times(PLANNED, 0.5, _response(choice, _usage(*counted))), Wrong)


def test_a_stream_without_tokens_is_wrong() -> None:
    assert isinstance(read_times(PLANNED, 0.5, _response(_usage(2, 3))), Wrong)


def test_a_row_has_medians_and_extremes_of_all_parts() -> None:
    row = make_row("triserve", "x", {"computed": [{"a": 1.0}, {"a": 5.0}, {"a": 2.0}], "served": [{"b": 7.0}]})
    assert row.summary == {"a": {"median": 2.0, "min": 1.0, "max": 5.0}, "b": {"median": 7.0, "min": 7.0, "max": 7.0}}


def test_ratios_are_to_the_best_of_llama_cpp_in_each_column() -> None:
    rows = [_row("llama.cpp", a=10.0, b=4.0), _row("llama.cpp", a=5.0, b=8.0), _row("triserve", a=20.0, b=4.0, c=1.0)]
    assert ratios(rows, ["a", "b", "c"]) == [{"a": 1.0, "b": 0.5}, {"a": 0.5, "b": 1.0}, {"a": 2.0, "b": 0.5}]


def test_the_table_shows_figures_ratios_and_gaps() -> None:
    table = as_markdown([_row("llama.cpp", a=10.0), _row("triserve", a=15.0, b=3.0)], ["a", "b"])
    assert table.splitlines()[2:] == ["| llama.cpp x | 10 (1.00) | - |", "| triserve x | 15 (1.50) | 3 |"]
