"""Places are never more than the limit, and all come back."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.admission import Admission
from triserve.rpc.errors import Overloaded, Unavailable


@given(st.integers(1, 6), st.lists(st.tuples(st.booleans(), st.integers(1, 4))))
def test_places_are_bounded_and_all_come_back(limit: int, steps: list[tuple[bool, int]]) -> None:
    admission = Admission(limit)
    open_tickets: list[ExitStack] = []
    for comes, width in steps:
        if comes:
            stack = ExitStack()
            before = admission.active
            try:
                ticket = stack.enter_context(admission.enter())
                ticket.widen(width)
                open_tickets.append(stack)
                assert admission.active == before + width
            except Overloaded:
                stack.close()
                assert before + width > limit
                assert admission.active == before
        elif open_tickets:
            open_tickets.pop().close()
        assert 0 <= admission.active <= limit
    for stack in open_tickets:
        stack.close()
    assert admission.active == 0


def test_a_closed_door_refuses_and_lets_those_inside_end() -> None:
    admission = Admission(4)
    with admission.enter():
        admission.close(Unavailable("leaving"))
        assert admission.closed
        with pytest.raises(Unavailable, match="leaving"):
            admission.enter()
        assert admission.active == 1
    assert admission.active == 0


async def test_idle_is_waited_for() -> None:
    admission = Admission(4)
    assert await admission.wait_idle(0.01)
    with admission.enter():
        waiting = asyncio.create_task(admission.wait_idle(5))
        assert not await admission.wait_idle(0)
    assert await waiting
