"""Places are never more than the limit, all come back, and nobody is locked out by one tenant or by requests of many answers."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.admission import Admission
from triserve.rpc.errors import Overloaded, Unavailable


@given(st.integers(1, 6), st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.sampled_from("ab"))), st.booleans())
def test_places_are_bounded_and_all_come_back(limit: int, steps: list[tuple[bool, int, str]], shared: bool) -> None:
    admission = Admission(limit, shared=shared)
    open_tickets: list[ExitStack] = []
    for comes, width, tenant in steps:
        if comes:
            stack = ExitStack()
            before = admission.active
            try:
                ticket = stack.enter_context(admission.enter(tenant))
                ticket.widen(width)
                open_tickets.append(stack)
                assert admission.active == before + width
            except Overloaded:
                stack.close()
                assert admission.active == before
        elif open_tickets:
            open_tickets.pop().close()
        assert 0 <= admission.active <= limit
    for stack in open_tickets:
        stack.close()
    assert admission.active == 0


@pytest.mark.parametrize("limit", [1, 2, 1024])
def test_a_lone_kind_of_tenant_has_every_place(limit: int) -> None:
    admission = Admission(limit)
    with ExitStack() as stack:
        for _ in range(limit):
            stack.enter_context(admission.enter("default"))
        with pytest.raises(Overloaded, match=f"^{limit} answers are under way, the limit is {limit}; try again$"):
            admission.enter("default")


def test_requests_of_many_answers_leave_room_for_others() -> None:
    admission = Admission(1024)
    with ExitStack() as stack:
        refused = 0
        for _ in range(8):
            ticket = stack.enter_context(admission.enter("default"))
            try:
                ticket.widen(128)
            except Overloaded:
                refused += 1
        assert refused == 1
        for _ in range(64):
            stack.enter_context(admission.enter("default"))


def test_a_request_may_be_as_wide_as_the_limit_where_it_is_alone() -> None:
    admission = Admission(8)
    with admission.enter("default") as ticket:
        ticket.widen(8)
        assert admission.active == 8


def test_a_wide_request_needs_as_many_places_free_as_it_takes() -> None:
    for wide, fits in ((6, True), (7, False), (8, False)):
        admission = Admission(12)
        with admission.enter("a"), admission.enter("b") as ticket:
            if fits:
                ticket.widen(wide)
                assert admission.active == 1 + wide
            else:
                with pytest.raises(Overloaded, match=f"2 answers are under way, the limit is 12: no room for {wide} more"):
                    ticket.widen(wide)


def test_a_ticket_that_is_wide_enough_asks_for_nothing() -> None:
    for wide in (1, 1000):
        admission = Admission(2000)
        with admission.enter("a") as ticket:
            ticket.widen(wide)
            admission.close(Unavailable("leaving"))
            for num_answers in (1, int(str(wide))):
                ticket.widen(num_answers)
                assert admission.active == wide
        assert admission.active == 0


def test_a_ticket_gives_its_places_back_once() -> None:
    admission = Admission(4)
    ticket = admission.enter("a")
    with ticket, admission.enter("b"):
        ticket.widen(2)
        with ticket:
            pass
        assert admission.active == 1
    assert admission.active == 0


async def test_as_long_as_anything_is_under_way_it_is_not_idle() -> None:
    admission = Admission(4)
    with admission.enter("a"):
        with admission.enter("a"):
            pass
        assert not await admission.wait_idle(0)


def test_a_closed_door_refuses_and_lets_those_inside_end() -> None:
    admission = Admission(4)
    admission.require_open()
    assert admission.closed is False
    with admission.enter("a"):
        admission.close(Unavailable("leaving"))
        assert admission.closed is True
        for enter in (lambda: admission.enter("a"), admission.require_open):
            with pytest.raises(Unavailable, match="leaving"):
                enter()
        assert admission.active == 1
    assert admission.active == 0


async def test_idle_is_waited_for() -> None:
    admission = Admission(4)
    assert await admission.wait_idle(0.01)
    with admission.enter("a"):
        waiting = asyncio.create_task(admission.wait_idle(5))
        assert not await admission.wait_idle(0)
    assert await waiting
