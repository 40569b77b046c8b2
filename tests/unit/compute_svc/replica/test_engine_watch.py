"""A frozen engine is told from a busy one by what it uses of the processor."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from compute_svc.replica.engine_watch import EngineWatch


def verdicts(
    seconds: Iterable[float],
    used: Iterable[float | None],
    *,
    is_silent: bool = True,
    is_loading: bool = False,
    step_timeout_s: float = 600.0,
) -> list[str | None]:
    """What a watch says at each look."""
    watch = EngineWatch(freeze_timeout_s=10.0, step_timeout_s=step_timeout_s)
    return [watch.look(now, is_silent=is_silent, is_loading=is_loading, used_s=used_s) for now, used_s in zip(seconds, used, strict=False)]


@pytest.mark.parametrize(("is_loading", "limit_s"), [(False, 10), (True, 100)], ids=["serving", "loading"])
def test_an_engine_that_is_silent_and_uses_no_processor_hangs(is_loading: bool, limit_s: int) -> None:
    said = verdicts(range(limit_s + 2), [3.0] * (limit_s + 2), is_loading=is_loading)
    assert said[limit_s] == f"has neither answered nor used the processor for {limit_s} s"
    assert said[:limit_s] == [None] * limit_s


def test_a_long_step_that_uses_the_processor_is_no_hang() -> None:
    assert verdicts(range(599), [now / 100 for now in range(599)]) == [None] * 599


def test_a_step_longer_than_any_request_may_take_is_one() -> None:
    said = verdicts(range(8), range(8), step_timeout_s=5.0)
    assert said[:5] == [None] * 5 and said[5] == "has been in one step for 5 s"


def test_loading_may_take_as_long_as_it_likes_while_it_works() -> None:
    assert set(verdicts(range(2000), range(2000), is_loading=True)) == {None}


def test_an_engine_that_answers_may_be_as_idle_as_it_likes() -> None:
    assert set(verdicts(range(100), [3.0] * 100, is_silent=False)) == {None}


def test_where_the_processor_time_is_not_known_silence_alone_is_no_freeze() -> None:
    assert set(verdicts(range(100), [None] * 100)) == {None}


def test_a_watcher_that_was_stopped_itself_does_not_count_that_as_silence() -> None:
    assert set(verdicts([0, 1, 5000, 5001, 9000], [3.0] * 5, step_timeout_s=5.0)) == {None}


def test_a_freeze_is_counted_anew_after_an_answer() -> None:
    watch = EngineWatch(freeze_timeout_s=2.0, step_timeout_s=600.0)
    silences = [True, True, False, True, True, True]
    said = [watch.look(now, is_silent=silent, is_loading=False, used_s=1.0) for now, silent in enumerate(silences)]
    assert said[:4] == [None] * 4 and said[4] == "has neither answered nor used the processor for 2 s"
