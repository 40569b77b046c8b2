"""Decides when a failing store is left alone and when it is tried again."""

from __future__ import annotations

from typing import Literal


class CircuitBreaker:
    """Closed: in use. Open: left alone. Half open: one probe is under way. Pure: the caller brings the time.

    Args:
        failures: failures in a row that open it.
        open_s: seconds from a failure to the next probe.
    """

    def __init__(self, *, failures: int, open_s: float) -> None:
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._probe_at = 0.0
        self._state: Literal["closed", "open", "half_open"] = "closed"

    @property
    def closed(self) -> bool:
        """Whether the store may be used."""
        return self._state == "closed"

    def succeeded(self) -> bool:
        """Counts a success, which closes it; returns whether it was not closed before."""
        was_closed = self.closed
        self._state = "closed"
        self._failures = 0
        return not was_closed

    def failed(self, now: float) -> bool:
        """Counts a failure; returns whether it opened a closed breaker."""
        was_closed = self.closed
        self._failures += 1
        if self._state == "half_open" or (was_closed and self._failures >= self._limit):
            self._state = "open"
            self._probe_at = now + self._open_s
        return was_closed and not self.closed

    def take_probe(self, now: float) -> bool:
        """Whether the caller is the one that is to probe now; it must report `succeeded` or `failed`."""
        if self._state != "open" or now < self._probe_at:
            return False
        self._state = "half_open"
        return True
