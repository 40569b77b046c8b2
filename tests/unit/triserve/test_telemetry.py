"""A line of the log is one event, with the same fields whatever it is about."""

from __future__ import annotations

import json
import logging

import pytest

from tests.fakes.recorded_spans import RecordedSpans
from triserve.rpc.telemetry import configure_logging
from triserve.rpc.traces.context import SpanContext

FIELDS = {"time", "level", "service", "logger", "message", "request_id", "trace_id", "error"}


@pytest.fixture(autouse=True)
def restored() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_each_event_is_one_object_with_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("sampler", as_json=True)
    logging.getLogger("sampler_svc.x").info("two\nlines of %s", "ünïcode")
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("sampler_svc.y").exception("failed")
    first, second = logged(capsys)
    assert set(first) == set(second) == FIELDS
    assert (first["service"], first["logger"], first["level"], first["message"]) == (
        "sampler",
        "sampler_svc.x",
        "INFO",
        "two\nlines of ünïcode",
    )
    assert first["error"] is None and "ValueError: wrong" in str(second["error"])
    assert str(first["time"]).endswith("Z")


@pytest.mark.parametrize("prefix", ["", "cmpl-", "chatcmpl-", "chat-"])
def test_the_request_a_line_is_about_is_a_field(capsys: pytest.CaptureFixture[str], prefix: str) -> None:
    configure_logging("gateway", as_json=True)
    request_id = prefix + "0123456789abcdef" * 2
    logging.getLogger("gateway").info("%s default completions ok after %.3f s", request_id, 0.5)
    logging.getLogger("gateway").info("connected to tokenizer")
    first, second = logged(capsys)
    assert (first["request_id"], second["request_id"]) == (request_id, None)


def test_a_line_of_a_request_that_is_traced_has_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    traced, other = "0123456789abcdef" * 2, "f" * 32
    recorded, context = RecordedSpans(), SpanContext.root()
    recorded.tracer.note(traced, context)
    configure_logging("gateway", as_json=True, trace_id_of=recorded.tracer.trace_id_of)
    for what in (f"chatcmpl-{traced} default chat ok", f"{traced} failed", f"cmpl-{other} default chat ok", "connected"):
        logging.getLogger("gateway").info(what)
    assert [line["trace_id"] for line in logged(capsys)] == [context.trace_id, context.trace_id, None, None]


def test_text_stays_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway")
    logging.getLogger("gateway").info("hello")
    assert capsys.readouterr().err.endswith("Z INFO gateway gateway hello\n")
