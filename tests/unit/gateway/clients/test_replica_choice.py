"""The least loaded replica is chosen, and equals take turns."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from gateway.clients.replica_choice import LeastLoad


class Replica(NamedTuple):
    in_flight: int
    others: int
    submitted: int


def best(replicas: list[Replica]) -> int:
    return LeastLoad().best(replicas, [1], "acme")


@given(st.lists(st.builds(Replica, st.integers(0, 9), st.integers(0, 9), st.integers(0, 99)), min_size=1))
def test_nobody_has_less_than_the_chosen(replicas: list[Replica]) -> None:
    chosen = replicas[best(replicas)]
    assert all(chosen.in_flight + chosen.others <= one.in_flight + one.others for one in replicas)


def test_idle_replicas_take_turns() -> None:
    replicas = [Replica(0, 0, 0)] * 3
    turns = []
    for _ in range(6):
        index = best(replicas)
        turns.append(index)
        replicas[index] = replicas[index]._replace(submitted=replicas[index].submitted + 1)
    assert turns == [0, 1, 2, 0, 1, 2]


def test_other_gateways_requests_count() -> None:
    assert best([Replica(1, 5, 0), Replica(3, 0, 9)]) == 1
