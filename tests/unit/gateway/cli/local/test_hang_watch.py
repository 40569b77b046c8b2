"""A part hangs when it misses several checks in a row; a busy one, a loading one and an interrupted watcher are let be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from gateway.cli.local.hang_watch import HangLimits, until_hung

LIMITS = HangLimits(silence_s=5e-3, start_s=10e-3)


class AskedEnough(Exception):
    """The script of answers has ended, and nobody was taken for hung."""


def script(answers: list[bool]) -> tuple[Callable[[float], Awaitable[bool]], list[float]]:
    """What a part answers, check by check, and with which time limits it was asked."""
    left: Iterator[bool] = iter(answers)
    timeouts: list[float] = []

    async def ask(timeout_s: float) -> bool:
        timeouts.append(timeout_s)
        for answer in left:
            return answer
        raise AskedEnough

    return ask, timeouts


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([True] + [False] * 5, 6),
        ([True] + [False] * 4 + [True] + [False] * 5, 11),
        ([False] * 9 + [True] + [False] * 5, 15),
        ([False] * 10, 10),
    ],
    ids=["silent", "silent twice", "silent after it loaded", "never heard of"],
)
async def test_a_part_that_misses_enough_checks_in_a_row_hangs(answers: list[bool], asked: int) -> None:
    ask, timeouts = script(answers)
    silent_s = await until_hung(ask, LIMITS)
    assert len(timeouts) == asked
    assert silent_s == pytest.approx(10e-3 if asked == 10 else 5e-3)
    assert set(timeouts) == {1e-3}


@pytest.mark.parametrize("answers", [[True, False, False, False, False] * 3, [False] * 9 + [True]], ids=["busy", "loading"])
async def test_a_part_that_answers_now_and_then_or_still_loads_is_let_be(answers: list[bool]) -> None:
    ask, _ = script(answers)
    with pytest.raises(AskedEnough):
        await until_hung(ask, LIMITS)


def test_a_part_that_loads_has_as_long_as_one_that_has_answered_at_least() -> None:
    limits = HangLimits(silence_s=10, start_s=1)
    assert limits.tolerated(has_answered=False) == limits.tolerated(has_answered=True) == 5
