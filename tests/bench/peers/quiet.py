"""Whether anybody else uses the machine: looked at before a measurement, and over it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil

# Cores that others may use while a figure still counts as one of a quiet machine.
QUIET_CORES = 0.1
_LOOK_S = 1.0


class Others(NamedTuple):
    """What others used of the machine, in cores, stolen time included.

    Attributes:
        before: In the second before a measurement.
        during: Over it.
        waited_s: How long it waited for quiet.
    """

    before: float
    during: float
    waited_s: float

    @property
    def are_quiet(self) -> bool:
        """Whether the figure is one of a quiet machine."""
        return self.during <= QUIET_CORES


class Watch:
    """Measures only what ran in processes that have ended and were waited for, as those of a measurement have.

    Attributes:
        others: Of the last measurement.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self.others = Others(0.0, 0.0, 0.0)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Waits until the machine is quiet, or patience is at its end, and looks at it for as long as the block runs."""
        began = time.monotonic()
        before = _busy_cores()
        while before > QUIET_CORES and time.monotonic() - began < self._patience_s:
            before = _busy_cores()
        waited_s = time.monotonic() - began
        all_s, own_s, at_s = _all_seconds(), _own_seconds(), time.monotonic()
        yield
        used_s = _all_seconds() - all_s - (_own_seconds() - own_s)
        self.others = Others(round(before, 3), round(max(0.0, used_s / (time.monotonic() - at_s)), 3), round(waited_s, 1))


def _busy_cores() -> float:
    all_s, at_s = _all_seconds(), time.monotonic()
    time.sleep(_LOOK_S)
    return (_all_seconds() - all_s) / (time.monotonic() - at_s)


def _all_seconds() -> float:
    """CPU time of everything since the machine has started, and what its host took from it."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def _own_seconds() -> float:
    """CPU time of this process and of those it has waited for."""
    return sum(os.times()[:4])
