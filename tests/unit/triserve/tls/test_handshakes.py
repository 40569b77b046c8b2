"""Connections that nobody hears of again are counted, and no others."""

from __future__ import annotations

import pytest

from triserve.rpc.tls.handshakes import Handshakes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handshakes(clock: Clock) -> Handshakes:
    return Handshakes(10.0, lambda: 7200, clock)


def test_one_that_has_time_left_is_not_counted(handshakes: Handshakes, clock: Clock) -> None:
    handshakes.begin()
    clock.now += 9.9
    handshakes.sweep()
    assert handshakes.refused == 0
    clock.now += 0.1
    handshakes.sweep()
    handshakes.sweep()
    assert handshakes.refused == 1


def test_as_many_are_counted_as_were_not_heard_of_whichever_they_were(
    handshakes: Handshakes, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        handshakes.begin()
    for _ in range(3):
        handshakes.complete()
    clock.now += 10
    handshakes.sweep()
    assert handshakes.refused == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("port 7200: 2 connections did not get past TLS")


def test_a_peer_that_is_heard_of_again_hides_no_later_failure(handshakes: Handshakes, clock: Clock) -> None:
    handshakes.begin()
    for _ in range(3):
        handshakes.complete()
    handshakes.begin()
    clock.now += 10
    handshakes.sweep()
    assert handshakes.refused == 1


def test_where_all_are_heard_of_nothing_is_said(handshakes: Handshakes, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    handshakes.begin()
    handshakes.complete()
    clock.now += 100
    handshakes.sweep()
    assert handshakes.refused == 0 and not caplog.records
