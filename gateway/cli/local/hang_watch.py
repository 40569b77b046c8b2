"""Tells a part that hangs from one that is busy: a busy part still answers whether it is alive."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

# Answers are missed one by one, each for its share of the time: a command that was itself stopped for a while and goes on (Ctrl-Z, a
# suspended machine) finds one check overdue, not all of them.
_CHECKS = 5

# Whether the part answers anything within so many seconds.
Answers = Callable[[float], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class HangLimits:
    """How long a part may keep silent."""

    # A part that has answered since its start.
    silence_s: float = 10.0
    # One that has not yet: it loads before it listens.
    start_s: float = 300.0

    @property
    def check_s(self) -> float:
        """How long one check waits for its answer, and the time from one to the next."""
        return self.silence_s / _CHECKS

    def tolerated(self, *, has_answered: bool) -> int:
        """Checks in a row that may fail before the part counts as hung."""
        return _CHECKS if has_answered else max(_CHECKS, math.ceil(self.start_s / self.check_s))


async def until_hung(answers: Answers, limits: HangLimits) -> float:
    """Returns when a part has kept silent for too long: for how many seconds, at least.

    Args:
        answers: asks the part.
        limits: how long it may be silent.
    """
    loop = asyncio.get_running_loop()
    has_answered, missed = False, 0
    while True:
        began = loop.time()
        if await answers(limits.check_s):
            has_answered, missed = True, 0
        else:
            missed += 1
        if missed >= limits.tolerated(has_answered=has_answered):
            return missed * limits.check_s
        await asyncio.sleep(max(0.0, began + limits.check_s - loop.time()))
