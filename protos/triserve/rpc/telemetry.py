"""Log lines of every service: one line each, as text or as JSON, with the request id where there is one, and never a prompt."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime

# As gateways make them; lines of a request begin with its id, or name it.
_REQUEST_ID = re.compile(r"\b(?:(?:chatcmpl|cmpl|chat)-)?[0-9a-f]{32}\b")


class _Formatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO compute compute_svc.engine.engine message`, in UTC."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service} %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The record's time in UTC, to the millisecond."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _JsonFormatter(_Formatter):
    """One object a line, with the same fields in every service: time, level, service, logger, message, request_id, trace_id, error."""

    def __init__(self, service: str, trace_id_of: Callable[[str], str | None]) -> None:
        super().__init__(service)
        self._service = service
        self._trace_id_of = trace_id_of

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        message = record.getMessage()
        named = _REQUEST_ID.search(message)
        return json.dumps(
            {
                "time": self.formatTime(record),
                "level": record.levelname,
                "service": self._service,
                "logger": record.name,
                "message": message,
                "request_id": named[0] if named is not None else None,
                "trace_id": self._trace_id_of(named[0]) if named is not None else None,
                "error": self.formatException(record.exc_info) if record.exc_info else None,
            }
        )


def configure_logging(
    service: str,
    *,
    level: int = logging.INFO,
    as_json: bool = False,
    trace_id_of: Callable[[str], str | None] | None = None,
) -> None:
    """Sends the process's log to standard error.

    Args:
        service: name at the head of each line.
        level: lowest level shown.
        as_json: whether each line is a JSON object.
        trace_id_of: gives the trace of a request by its id, where it has one; None = there are no traces.

    Effects: replaces the handlers of the root logger. Nothing is asked for each line that no line has: thread, process and task.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service, trace_id_of or (lambda request_id: None)) if as_json else _Formatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
