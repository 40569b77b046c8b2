"""Requests are counted, bounded, and waited for."""

from __future__ import annotations

import asyncio

import pytest

from sampler_svc.request_slots import RequestSlots
from triserve.rpc.errors import Overloaded, Unavailable


def test_one_request_too_many_is_overloaded_until_one_is_released() -> None:
    slots = RequestSlots(2)
    slots.admit()
    slots.admit()
    with pytest.raises(Overloaded, match="2 requests, the limit is 2"):
        slots.admit()
    slots.release()
    slots.admit()
    assert slots.open_requests == 2


def test_closed_slots_take_nothing() -> None:
    slots = RequestSlots(2)
    slots.close()
    with pytest.raises(Unavailable):
        slots.admit()


async def test_idle_is_when_the_last_request_is_released() -> None:
    slots = RequestSlots(5)
    await slots.wait_idle()
    slots.admit()
    slots.admit()
    waiter = asyncio.create_task(slots.wait_idle())
    slots.release()
    await asyncio.sleep(0)
    assert not waiter.done()
    slots.release()
    await waiter


def test_more_released_than_admitted_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError):
        RequestSlots(1).release()
