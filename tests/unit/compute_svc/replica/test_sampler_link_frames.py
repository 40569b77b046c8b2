"""Frames to one sampler and its answers, without a network: how many are under way, when it is behind, late or lost, and what is left then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import SamplerAnswer
from compute_svc.replica.sampler_link import SamplerLink
from compute_svc.wire.step_output import Rows
from triserve.rpc.errors import Unavailable
from triserve.rpc.session import MalformedMessage
from triserve.v1 import sampler_pb2

Response = sampler_pb2.SampleResponse
_HANG_S = 20.0


@dataclass
class _Heard:
    """A listener that remembers."""

    answers: list[SamplerAnswer] = field(default_factory=list)
    behind: list[bool] = field(default_factory=list)
    silent: list[list[int]] = field(default_factory=list)
    lost: list[tuple[list[int], str]] = field(default_factory=list)
    num_changes: int = 0

    def on_sampler_changed(self, link: SamplerLink) -> None:
        """Counts."""
        self.num_changes += 1

    def on_sampler_answer(self, link: SamplerLink, answer: SamplerAnswer) -> None:
        """Remembers it."""
        self.answers.append(answer)

    def on_sampler_behind(self, link: SamplerLink, behind: bool) -> None:
        """Remembers it."""
        self.behind.append(behind)

    def on_sampler_silent(self, link: SamplerLink, numbers: Sequence[int]) -> None:
        """Remembers them."""
        self.silent.append(list(numbers))

    def on_sampler_lost(self, link: SamplerLink, numbers: Sequence[int], error: Unavailable) -> None:
        """Remembers them."""
        self.lost.append((list(numbers), error.message))


class _Call:
    """A stream to a sampler that answers when the test says so."""

    def __init__(self) -> None:
        self.written: list[sampler_pb2.SampleRequest] = []
        self.answers: asyncio.Queue[Response] = asyncio.Queue()

    async def write(self, frame: sampler_pb2.SampleRequest) -> None:
        """Remembers it."""
        self.written.append(frame)

    async def read(self) -> Response:
        """The next answer."""
        return await self.answers.get()


class _Stream:
    """A link whose stream is open, and its other end."""

    def __init__(self, max_unanswered: int = 8, answer_timeout_s: float = _HANG_S) -> None:
        self.now = 100.0
        self.heard = _Heard()
        self.call = _Call()
        hello = sampler_pb2.ComputeHello(compute_name="c", logits_width=24)
        self.link = SamplerLink(
            "sampler:1", hello, self.heard, max_unanswered=max_unanswered, answer_timeout_s=answer_timeout_s, clock=lambda: self.now
        )
        self.parts: list[asyncio.Future[None]] = []

    def connect(self) -> None:
        """What the session does after the hellos."""
        vars(self.link)["_call"] = self.call
        self.parts = [asyncio.ensure_future(part) for part in self.link._parts()]

    async def turn(self) -> None:
        """Lets everything run that can."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def send(self, number: int = 1, position: int = 0) -> None:
        """One step's row of a request."""
        positions, counts, tokens = np.array([[position], [1], [3]], dtype=np.uint32)
        self.link.send_rows(Rows(np.array([number], dtype=np.uint64), positions, counts, tokens, [], []))
        await self.turn()

    async def answer(self, frame: int, **fields: Any) -> None:
        """The sampler answers."""
        await self.call.answers.put(Response(frame=frame, **fields))
        await self.turn()

    @property
    def frames(self) -> list[int]:
        """Those that were written."""
        return [frame.frame for frame in self.call.written]

    async def close(self) -> None:
        """Ends what runs."""
        for part in self.parts:
            part.cancel()
        await asyncio.gather(*self.parts, return_exceptions=True)


@pytest.fixture
async def stream() -> AsyncIterator[_Stream]:
    """At most eight frames unanswered; request 1 is open at its other end."""
    stream = _Stream()
    stream.connect()
    stream.link.open(_opening(1))
    await stream.turn()
    await stream.answer(1)
    yield stream
    await stream.close()


def _opening(number: int) -> sampler_pb2.OpenRequest:
    return sampler_pb2.OpenRequest(request=number, gateway=1, gateway_request=100 + number, epoch=2)


async def test_no_more_frames_are_under_way_than_may_be_unanswered(stream: _Stream) -> None:
    for position in range(12):
        await stream.send(position=position)
    assert stream.frames == [1, *range(2, 10)]
    await stream.answer(2)
    assert stream.frames[-1] == 10
    assert list(stream.call.written[-1].position) == [8, 9, 10, 11], "what waited goes out together"
    await stream.answer(10)
    assert len(stream.heard.answers) == 3
    await stream.send(position=12)
    assert stream.frames[-1] == 11


async def test_a_sampler_is_behind_with_all_its_frames_unanswered_until_half_are_answered(stream: _Stream) -> None:
    for position in range(7):
        await stream.send(position=position)
    assert (stream.link.is_behind, stream.link.lags, stream.heard.behind) == (False, False, [])
    await stream.send(position=7)
    assert (stream.link.is_behind, stream.link.lags, stream.heard.behind) == (True, True, [True])
    await stream.answer(2)
    await stream.answer(4)
    assert stream.link.is_behind and stream.heard.behind == [True]
    await stream.answer(5)
    assert (stream.link.is_behind, stream.heard.behind) == (False, [True, False])
    await stream.send(position=8)
    assert not stream.link.is_behind


async def test_rows_that_wait_for_a_stream_are_a_backlog_too() -> None:
    stream = _Stream(max_unanswered=3)
    for position in range(2):
        await stream.send(position=position)
    assert stream.heard.behind == []
    await stream.send(position=2)
    assert stream.heard.behind == [True]
    assert not vars(stream.link)["_ledger"].sent


async def test_a_sampler_is_late_when_its_oldest_frame_has_waited_for_more_than_a_second(stream: _Stream) -> None:
    def late_at(now: float) -> bool:
        stream.now = now
        return stream.link.lags

    stream.now = 200.0
    await stream.send()
    assert [late_at(now) for now in (200.0, 200.5, 201.0, 201.25)] == [False, False, False, True]
    stream.now = 200.75
    await stream.send(position=1)
    assert late_at(201.25), "a new frame is no answer"
    await stream.answer(2)
    assert [late_at(now) for now in (201.25, 202.25, 202.5)] == [False, False, True]
    await stream.answer(3)
    assert not late_at(900.0), "nothing is asked of it"


async def test_a_sampler_that_answers_nothing_for_its_time_is_lost() -> None:
    stream = _Stream(answer_timeout_s=1.0)
    stream.now = 50.0
    stream.connect()
    watch = stream.parts[-1]
    stream.link.open(_opening(1))
    await stream.turn()
    await stream.answer(1)
    await stream.send()
    watch.cancel()
    stream.now = 50.9375
    watch = asyncio.ensure_future(stream.link._watch_answers())
    await stream.turn()
    assert not watch.done()
    stream.now = 51.0
    with pytest.raises(Unavailable, match=r"^it left frame 2 unanswered for 1 s$"):
        await asyncio.wait_for(watch, _HANG_S)
    await stream.close()


async def test_a_sampler_of_whom_nothing_is_asked_is_not_lost() -> None:
    stream = _Stream(answer_timeout_s=1.0)
    stream.now = 900.0
    stream.connect()
    await stream.turn()
    assert not any(part.done() for part in stream.parts)
    await stream.close()


async def test_what_is_open_is_known_until_it_is_closed(stream: _Stream) -> None:
    link, key = stream.link, TextKey(1, 101, 2)
    assert (link.has(1), link.has(2), list(link.requests), link.in_flight) == (True, False, [1], 1)
    assert list(stream.call.written[0].open) == [_opening(1)]
    link.close_request(2)
    await stream.turn()
    assert len(stream.call.written) == 1, "what is not open is not closed"
    assert not link.is_leaving(key)
    link.close_request(1)
    assert (link.has(1), link.in_flight, link.is_leaving(key)) == (False, 0, True)
    await stream.turn()
    assert list(stream.call.written[1].close) == [1]
    await stream.answer(2)
    assert not link.is_leaving(key)


async def test_a_request_cannot_end_before_the_frame_that_opened_it_is_answered(stream: _Stream) -> None:
    await stream.send()
    stream.link.open(_opening(2))
    await stream.turn()
    await stream.answer(2, finished=[2])
    (reading,) = [part for part in stream.parts if part.done()]
    assert isinstance(reading.exception(), MalformedMessage)


async def test_a_request_that_waits_to_be_opened_is_leaving_until_the_frame_that_closes_it_is_answered(stream: _Stream) -> None:
    await stream.send()
    stream.link.open(_opening(2))
    stream.link.close_request(2)
    await stream.answer(2)
    assert stream.link.is_leaving(TextKey(1, 102, 2))
    await stream.answer(3)
    assert not stream.link.is_leaving(TextKey(1, 102, 2))


async def test_a_last_row_that_was_answered_without_an_end_is_told_at_once_and_one_that_was_not_later(stream: _Stream) -> None:
    await stream.send()
    stream.link.expect_end(1)
    assert stream.heard.silent == []
    await stream.answer(2)
    assert [answer.silent for answer in stream.heard.answers] == [[], [1]]
    stream.link.open(_opening(2))
    await stream.send(2)
    await stream.answer(3)
    stream.link.expect_end(2)
    assert stream.heard.silent == [[2]]


async def test_an_answer_to_rows_that_still_wait_is_not_expected(stream: _Stream) -> None:
    for position in range(9):
        await stream.send(position=position)
    stream.link.expect_end(1)
    await stream.answer(9)
    assert [answer.silent for answer in stream.heard.answers] == [[], []]
    await stream.answer(10)
    assert stream.heard.answers[-1].silent == [1]


async def test_a_lost_stream_leaves_nothing_but_word_of_its_requests(stream: _Stream) -> None:
    for position in range(9):
        await stream.send(position=position)
    stream.now = 500.0
    assert stream.link.is_behind and stream.link.lags
    stream.link._lost(Unavailable("it is gone"))
    assert stream.heard.lost == [([1], "it is gone")]
    assert not (stream.link.is_behind or stream.link.lags or stream.link.in_flight)
    stream.link._lost(Unavailable("again"))
    assert len(stream.heard.lost) == 1, "nobody was there"
    await stream.close()
    stream.call = _Call()
    stream.connect()
    await stream.turn()
    assert stream.frames == []
    stream.link.open(_opening(3))
    await stream.turn()
    assert stream.frames == [1]
