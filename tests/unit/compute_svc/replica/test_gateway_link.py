"""What waits for a gateway: merged, bounded, and all of it before the end."""

from __future__ import annotations

import asyncio

import pytest

from compute_svc.replica.gateway_link import GatewayLink
from triserve.rpc.errors import InvalidRequest, Overloaded
from triserve.v1 import compute_pb2


def _link(max_backlog_bytes: int = 10_000) -> GatewayLink:
    return GatewayLink(1, "test", max_backlog_bytes)


async def test_everything_said_between_two_reads_is_one_message() -> None:
    link = _link()
    link.add_started(compute_pb2.RequestStarted(request=1))
    link.add_parcel(b"a")
    link.add_parcel(b"b")
    link.add_ended(compute_pb2.RequestEnded(request=1))
    response = await link.next_response()
    assert response is not None
    assert (len(response.started), list(response.parcels), len(response.ended)) == (1, [b"a", b"b"], 1)


async def test_hidden_states_wait_in_their_order_and_count_for_the_backlog() -> None:
    link = _link(10_000)
    parts = [compute_pb2.RequestHiddenStates(request=1, first_position=index, vectors=bytes(4000), width=1000) for index in range(3)]
    for part in parts[:2]:
        link.add_hidden(part)
    assert await link.next_response() == compute_pb2.GenerateResponse(hidden_states=parts[:2])
    for part in parts:
        link.add_hidden(part)
    with pytest.raises(Overloaded):
        await link.next_response()


async def test_a_reader_waits_for_news() -> None:
    link = _link()
    reader = asyncio.ensure_future(link.next_response())
    await asyncio.sleep(0)
    assert not reader.done()
    link.add_parcel(b"a")
    assert (await reader) == compute_pb2.GenerateResponse(parcels=[b"a"])


async def test_a_start_waits_for_the_text_that_follows() -> None:
    link = _link()
    reader = asyncio.ensure_future(link.next_response())
    link.add_started(compute_pb2.RequestStarted(request=1))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not reader.done()
    link.add_parcel(b"a")
    response = await reader
    assert response is not None and len(response.started) == 1


async def test_the_last_load_counts() -> None:
    link = _link()
    link.set_load(compute_pb2.ComputeLoad(steps=1))
    link.set_load(compute_pb2.ComputeLoad(steps=2))
    assert (await link.next_response()) == compute_pb2.GenerateResponse(load=compute_pb2.ComputeLoad(steps=2))


async def test_what_waits_is_read_before_the_end() -> None:
    link = _link()
    link.add_parcel(b"a")
    link.close()
    assert (await link.next_response()) == compute_pb2.GenerateResponse(parcels=[b"a"])
    assert await link.next_response() is None
    assert await link.next_response() is None


async def test_an_error_is_the_end() -> None:
    link = _link()
    link.close(InvalidRequest("wrong"))
    link.close()
    with pytest.raises(InvalidRequest):
        await link.next_response()


async def test_a_backlog_above_the_limit_cuts_the_gateway_off() -> None:
    link = _link(max_backlog_bytes=500)
    link.add_parcel(b"x" * 300)
    assert not link.cut_off.is_set()
    link.add_parcel(b"x" * 300)
    assert link.cut_off.is_set() and link.is_closed
    with pytest.raises(Overloaded):
        await link.next_response()


async def test_reading_makes_room() -> None:
    link = _link(max_backlog_bytes=500)
    for _ in range(5):
        link.add_parcel(b"x" * 300)
        await link.next_response()
    assert not link.cut_off.is_set()
