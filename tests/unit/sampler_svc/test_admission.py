"""Requests are counted, bounded, and waited for."""

from __future__ import annotations

import asyncio

import pytest

from sampler_svc.admission import Admission
from triserve.rpc.errors import Overloaded, Unavailable


def test_one_request_too_many_is_overloaded_until_one_is_released() -> None:
    admission = Admission(2)
    admission.admit()
    admission.admit()
    with pytest.raises(Overloaded, match="2 requests, the limit is 2"):
        admission.admit()
    admission.release()
    admission.admit()
    assert admission.open_requests == 2


def test_a_closed_admission_takes_nothing() -> None:
    admission = Admission(2)
    admission.close()
    with pytest.raises(Unavailable):
        admission.admit()


async def test_idle_is_when_the_last_request_is_released() -> None:
    admission = Admission(5)
    await admission.wait_idle()
    admission.admit()
    admission.admit()
    waiter = asyncio.create_task(admission.wait_idle())
    admission.release()
    await asyncio.sleep(0)
    assert not waiter.done()
    admission.release()
    await waiter


def test_more_released_than_admitted_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError):
        Admission(1).release()
