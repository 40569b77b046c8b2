"""Log lines of every service: one line each, with the request id where there is one, and never a prompt."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime


class _Formatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO compute compute_svc.engine.engine message`, in UTC."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service} %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The record's time in UTC, to the millisecond."""
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def configure_logging(service: str, *, level: int = logging.INFO) -> None:
    """Sends the process's log to standard error.

    Args:
        service: name at the head of each line.
        level: lowest level shown.

    Effects: replaces the handlers of the root logger.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
