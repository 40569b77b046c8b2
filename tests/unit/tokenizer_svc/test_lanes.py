"""Lanes: bounded, in order, cancellable while waiting, and long work delays no shorter work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_svc.lanes import Lane, LaneLimits, Lanes
from triserve.rpc.errors import Overloaded, Unavailable

PATIENCE_S = 30


class Held:
    """Work that is done when the test says so."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return "held"


@contextmanager
def lane(threads: int = 1, max_waiting: int = 4, max_waiting_bytes: int = 1000, **options: object) -> Iterator[Lane]:
    made = Lane("test", LaneLimits(threads, max_waiting, max_waiting_bytes), **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()
        assert made.join(PATIENCE_S)


@contextmanager
def busy(made: Lane) -> Iterator[Held]:
    """The lane's only thread at work on something."""
    held = Held()
    future = made.submit(held, 1)
    assert held.begun.wait(PATIENCE_S)
    try:
        yield held
    finally:
        held.go_on.set()
        assert future.result(PATIENCE_S) == "held"


def test_work_is_done_in_the_order_it_came() -> None:
    done: list[int] = []
    with lane() as one:
        with busy(one):
            futures = [one.submit(lambda number=number: done.append(number), 1) for number in range(4)]  # type: ignore[misc]
        for future in futures:
            future.result(PATIENCE_S)
    assert done == [0, 1, 2, 3]


@pytest.mark.parametrize("max_waiting", [0, 1, 2, 3])
def test_a_full_queue_refuses_with_its_limit_and_takes_again_when_there_is_room(max_waiting: int) -> None:
    with lane(max_waiting=max_waiting) as one:
        for _ in range(3):
            with busy(one):
                waiting = [one.submit(int, 1) for _ in range(max_waiting)]
                with pytest.raises(Overloaded, match=f"has {max_waiting} requests waiting, the limit is {max_waiting}"):
                    one.submit(int, 1)
            for future in waiting:
                future.result(PATIENCE_S)
        assert one.submit(int, 1).result(PATIENCE_S) == 0


def test_what_idle_threads_are_about_to_take_does_not_count_as_waiting() -> None:
    with lane(threads=2, max_waiting=1) as one:
        with one._changed:  # no thread takes anything yet
            taken = [one.submit(int, 10**9) for _ in range(2)]
            with pytest.raises(Overloaded, match="bytes waiting"):
                one.submit(int, 1)
            for future in taken:
                future.cancel()
            taken = [one.submit(int, 1) for _ in range(3)]
            with pytest.raises(Overloaded, match="1 requests waiting"):
                one.submit(int, 1)
        assert [future.result(PATIENCE_S) for future in taken] == [0, 0, 0]


def test_the_bytes_that_wait_are_bounded_too() -> None:
    with lane(max_waiting_bytes=100) as one, busy(one):
        with pytest.raises(Overloaded, match="0 bytes waiting, the limit is 100"):
            one.submit(int, 101)
        one.submit(int, 60)
        with pytest.raises(Overloaded, match="60 bytes waiting, the limit is 100"):
            one.submit(int, 41)
        one.submit(int, 40)


def test_a_thread_is_known_by_its_lane_and_does_not_hold_the_process() -> None:
    with lane(threads=2) as one:
        thread = one.submit(threading.current_thread, 1).result(PATIENCE_S)
        assert thread.daemon
        assert thread.name in ("test-0", "test-1")


def test_an_idle_thread_takes_input_of_any_size() -> None:
    with lane(max_waiting=0, max_waiting_bytes=1) as one:
        assert one.submit(int, 10**9).result(PATIENCE_S) == 0


def test_cancelling_what_waits_makes_room_at_once() -> None:
    with lane(max_waiting=1, max_waiting_bytes=10) as one, busy(one):
        for _ in range(5):
            waiting = one.submit(int, 10)
            assert one.num_waiting == 1
            assert waiting.cancel()
            assert one.num_waiting == 0


def test_cancelling_what_has_begun_changes_nothing() -> None:
    with lane() as one:
        held = Held()
        future = one.submit(held, 1)
        assert held.begun.wait(PATIENCE_S)
        assert not future.cancel()
        held.go_on.set()
        assert future.result(PATIENCE_S) == "held"


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_work_that_fails_in_any_way_leaves_the_thread_alive(failure: BaseException) -> None:
    def fail() -> None:
        raise failure

    with lane() as one:
        assert one.submit(fail, 1).exception(PATIENCE_S) is failure
        assert one.submit(int, 1).result(PATIENCE_S) == 0


def test_closing_cancels_what_waits_and_finishes_what_has_begun() -> None:
    with lane() as one:
        with busy(one):
            waiting = one.submit(int, 1)
            one.close()
            assert waiting.cancelled()
            with pytest.raises(Unavailable):
                one.submit(int, 1)
            assert not one.join(0)
        assert one.join(PATIENCE_S)


def test_a_lane_stalls_when_work_waits_and_nothing_moves() -> None:
    now = [0.0]
    with lane(clock=lambda: now[0]) as one:
        with busy(one):
            now[0] = 100
            assert not one.stalled(30)
            waiting = one.submit(int, 1)
            assert not one.stalled(30)
            now[0] = 130
            assert not one.stalled(30)
            now[0] = 131
            assert one.stalled(30)
        waiting.result(PATIENCE_S)
        assert not one.stalled(30)


def test_short_work_is_done_before_submit_returns() -> None:
    with lane() as one, busy(one):
        lanes = Lanes(10, [(100, one)])
        for num_bytes in (0, 9, 10):
            assert lanes.submit(threading.get_ident, num_bytes).result(0) == threading.get_ident()
        assert not lanes.submit(threading.get_ident, 11).done()


def test_long_work_delays_neither_middle_nor_short_work() -> None:
    with lane() as middle, lane() as long:
        lanes = Lanes(10, [(100, middle), (1000, long)])
        with busy(long):
            waiting = lanes.submit(int, 1000)
            for num_bytes in (11, 99, 100):
                assert lanes.submit(int, num_bytes).result(PATIENCE_S) == 0
            assert not waiting.done()
        assert waiting.result(PATIENCE_S) == 0


def test_the_last_lane_takes_what_is_longer_than_any() -> None:
    with lane() as middle, lane() as long, busy(middle):
        assert Lanes(0, [(1, middle), (2, long)]).submit(int, 999).result(PATIENCE_S) == 0


def test_all_lanes_are_watched_and_closed() -> None:
    now = [0.0]
    with lane(clock=lambda: now[0]) as middle, lane(clock=lambda: now[0]) as long:
        lanes = Lanes(0, [(1, middle), (9, long)])
        with busy(long):
            lanes.submit(int, 9)
            now[0] = 10
            assert lanes.stalled(5)
        lanes.close()
        assert lanes.join(PATIENCE_S)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["submit", "cancel first", "cancel last"]), max_size=30))
def test_whatever_is_cancelled_the_rest_is_done_and_the_books_balance(steps: list[str]) -> None:
    with lane(max_waiting=5, max_waiting_bytes=35) as one:
        with busy(one):
            waiting = []
            for step in steps:
                if step == "submit":
                    try:
                        waiting.append(one.submit(int, 10))
                    except Overloaded:
                        assert len(waiting) == 3
                elif waiting:
                    assert waiting.pop(0 if step == "cancel first" else -1).cancel()
                assert one.num_waiting == len(waiting)
        assert [future.result(PATIENCE_S) for future in waiting] == [0] * len(waiting)
        assert one.num_waiting == 0


def test_the_queue_is_as_long_as_its_bytes_take_at_the_pace_that_was_measured() -> None:
    now = [0.0]
    lane = Lane("test", LaneLimits(threads=1, max_waiting=10, max_waiting_bytes=10**6), clock=lambda: now[0])
    assert lane.queued_s == 0.0

    def two_seconds() -> None:
        now[0] += 2.0

    lane.submit(two_seconds, 1000).result()
    gate = threading.Event()
    held = lane.submit(gate.wait, 1)
    while lane.num_waiting:
        threading.Event().wait(0.001)
    lane.submit(two_seconds, 4000)
    assert lane.queued_s == pytest.approx(8.0)
    gate.set()
    held.result()
    lane.close()
