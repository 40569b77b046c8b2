"""Pauses between restarts grow, are bounded, and begin anew for a part that had settled."""

from __future__ import annotations

from gateway.cli.local.part import RestartPause

PAUSE = RestartPause(first_s=0.1, longest_s=5.0, settled_s=10.0)


def test_pauses_double_up_to_the_longest() -> None:
    pauses: list[float] = []
    for _ in range(8):
        pauses.append(PAUSE.after(pauses[-1] if pauses else None, up_s=1.0))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_part_that_had_settled_is_started_again_soon() -> None:
    assert PAUSE.after(5.0, up_s=10.0) == 0.1
    assert PAUSE.after(5.0, up_s=9.9) == 5.0
