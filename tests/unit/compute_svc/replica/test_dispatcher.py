"""Requests under way: who hears of what, who is chosen, and that each ends exactly once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compute_svc.replica.dispatcher import Dispatcher
from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import Failed, Parcel, SamplerAnswer, Verdict
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import Load, Released, Rows, Started, StepOutput
from triserve.rpc.errors import Internal, Overloaded, ServiceError, Unavailable
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

WIDTH = 24
FINISHED = compute_pb2.REQUEST_OUTCOME_FINISHED
CANCELLED = compute_pb2.REQUEST_OUTCOME_CANCELLED
FAILED = compute_pb2.REQUEST_OUTCOME_FAILED


@dataclass
class FakeEngine:
    """Remembers what it is asked."""

    submitted: list[Request] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    drawn: list[Verdict] = field(default_factory=list)
    pauses: list[tuple[list[int], bool]] = field(default_factory=list)

    def submit(self, request: Request) -> None:
        """Remembers it."""
        self.submitted.append(request)

    def release(self, number: int) -> None:
        """Remembers it."""
        self.released.append(number)

    def verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Remembers them."""
        self.drawn.extend(verdicts)

    def pause(self, numbers: Sequence[int], *, paused: bool) -> None:
        """Remembers it."""
        self.pauses.append((list(numbers), paused))


@dataclass
class FakeLink:
    """A sampler that a test makes ready, slow or gone."""

    target: str = "10.0.0.1:7400"
    ready: bool = True
    is_behind: bool = False
    lags: bool = False
    opened: dict[int, sampler_pb2.OpenRequest] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    sent: list[list[int] | None] = field(default_factory=list)
    awaits_end: list[int] = field(default_factory=list)
    leaving: list[TextKey] = field(default_factory=list)

    @property
    def requests(self) -> Iterable[int]:
        """Those that are open."""
        return self.opened

    @property
    def num_requests(self) -> int:
        """How many they are."""
        return len(self.opened)

    def has(self, number: int) -> bool:
        """Whether one is open."""
        return number in self.opened

    def is_leaving(self, key: TextKey) -> bool:
        """As the test says."""
        return key in self.leaving

    def open(self, opening: sampler_pb2.OpenRequest) -> None:
        """Opens one."""
        self.opened[opening.request] = opening

    def close_request(self, number: int) -> None:
        """Closes one."""
        if self.opened.pop(number, None) is not None:
            self.closed.append(number)

    def send_rows(self, rows: Rows, chosen: list[int] | None) -> None:
        """Remembers which."""
        self.sent.append(chosen)

    def expect_end(self, number: int) -> None:
        """Remembers it."""
        self.awaits_end.append(number)


class Desk:
    """A dispatcher with everything around it."""

    def __init__(self, *links: FakeLink) -> None:
        self.now = 100.0
        self.engine = FakeEngine()
        self.links = links or (FakeLink(),)
        self.changes = 0
        self.dispatcher = Dispatcher(
            self.engine,
            logits_width=WIDTH,
            max_request_tokens=64,
            max_backlog_bytes=1 << 20,
            on_samplers_change=self._count,
            clock=lambda: self.now,
        )
        for link in self.links:
            self.dispatcher.add_sampler(link)
        self.gateway = self.dispatcher.open_gateway("g")

    def _count(self) -> None:
        self.changes += 1

    @property
    def link(self) -> FakeLink:
        """The first sampler."""
        return self.links[0]

    def submit(self, request: int, gateway: GatewayLink | None = None, **fields: Any) -> int:
        """Submits; returns the engine's number, or that of the request before if it was refused."""
        message = compute_pb2.SubmitRequest(
            request=request,
            request_id=f"r{request}",
            token_ids=[1, 2],
            sampling=common_pb2.SamplingParams(temperature=0),
            stopping=common_pb2.StoppingParams(max_tokens=4),
        )
        message.MergeFrom(compute_pb2.SubmitRequest(**fields))
        self.dispatcher.submit(gateway or self.gateway, message)
        return self.engine.submitted[-1].number if self.engine.submitted else 0

    def admit(self, request: int, gateway: GatewayLink | None = None) -> int:
        """Submits and admits; returns the engine's number."""
        number = self.submit(request, gateway)
        self.dispatcher.on_engine_admitted([number])
        return number

    def output(self, *, rows: Rows | None = None, started: Sequence[Started] = (), released: Sequence[Released] = ()) -> None:
        """A step ends."""
        self.dispatcher.on_engine_output(StepOutput(rows, list(started), list(released), Load.nothing(), [], None), self.now)

    def free(self, number: int, error: ServiceError | None = None, preemptions: int = 0) -> None:
        """A request's KV is free."""
        self.output(released=[Released(number, preemptions, error)])

    def answer(self, link: FakeLink | None = None, **fields: Any) -> None:
        """A sampler answers; requests it has ended are open no longer, as its link sees to."""
        link = link or self.link
        answer = SamplerAnswer([], [], [], [], [])._replace(**fields)
        for number in [*answer.finished, *(failed.number for failed in answer.failed)]:
            del link.opened[number]
        self.dispatcher.on_sampler_answer(link, answer)

    async def told(self, gateway: GatewayLink | None = None) -> compute_pb2.GenerateResponse:
        """What waits for a gateway."""
        response = await (gateway or self.gateway).next_response()
        assert response is not None
        return response

    async def ended(self) -> compute_pb2.RequestEnded:
        """The one request that has ended."""
        (end,) = (await self.told()).ended
        return end


def rows_of(*numbers: int) -> Rows:
    count = len(numbers)
    positions, counts, tokens = (np.full(count, value, np.uint32) for value in (0, 1, 3))
    return Rows(np.array(numbers, np.uint64), positions, counts, tokens, [], [])


async def test_a_request_that_its_sampler_ends_is_released_and_ends_when_its_pages_are_free() -> None:
    desk = Desk()
    number = desk.admit(7)
    desk.answer(finished=[number])
    assert desk.engine.released == [number]
    desk.free(number, preemptions=2)
    end = await desk.ended()
    assert (end.request, end.outcome, end.preemptions) == (7, FINISHED, 2)
    await desk.dispatcher.wait_until_idle(0)


async def test_a_request_whose_last_token_is_computed_ends_by_its_samplers_word() -> None:
    desk = Desk()
    number = desk.admit(7)
    desk.free(number)
    assert (desk.link.awaits_end, desk.engine.released) == ([number], [])
    desk.answer(finished=[number])
    assert (await desk.ended()).outcome == FINISHED


async def test_the_first_word_on_how_a_request_ends_counts() -> None:
    desk = Desk()
    number = desk.admit(7)
    desk.dispatcher.cancel(desk.gateway, 7)
    desk.free(number, Internal("too late"))
    assert (await desk.ended()).outcome == CANCELLED
    assert (desk.link.closed, desk.engine.released) == ([number], [number])


def test_cancelling_what_is_not_there_does_nothing() -> None:
    desk = Desk()
    desk.dispatcher.cancel(desk.gateway, 99)
    assert not desk.engine.released


async def test_a_gateway_that_is_gone_is_told_nothing_and_takes_its_requests_with_it() -> None:
    desk = Desk()
    other = desk.dispatcher.open_gateway("other")
    mine, theirs = desk.admit(1), desk.admit(1, other)
    desk.dispatcher.close_gateway(desk.gateway)
    desk.dispatcher.close_gateway(desk.gateway)
    assert desk.engine.released == [mine]
    desk.answer(parcels=[Parcel(desk.gateway.number, b"late"), Parcel(other.number, b"text")])
    desk.free(mine)
    assert await desk.gateway.next_response() is None
    assert list((await desk.told(other)).parcels) == [b"text"]
    assert desk.dispatcher.gateways == [other]
    assert desk.link.opened.keys() == {theirs}


async def test_verdicts_and_parcels_go_where_they_belong() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.answer(verdicts=[Verdict(number, 0, [5])], parcels=[Parcel(desk.gateway.number, b"text")])
    assert desk.engine.drawn == [Verdict(number, 0, [5])]
    assert list((await desk.told()).parcels) == [b"text"]


def test_an_answer_without_verdicts_tells_the_engine_nothing() -> None:
    desk = Desk()
    desk.admit(1)
    desk.answer()
    assert not desk.engine.drawn


async def test_a_failure_in_the_sampler_is_told_and_frees_the_request() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.answer(failed=[Failed(number, Overloaded("the sampler is full"))])
    assert desk.engine.released == [number]
    desk.free(number)
    end = await desk.ended()
    assert (end.outcome, end.error.reason, end.error.message) == (FAILED, "OVERLOADED", "the sampler is full")


async def test_a_request_that_its_sampler_left_out_fails_alone() -> None:
    desk = Desk()
    left_out, other = desk.admit(1), desk.admit(2)
    desk.answer(silent=[left_out])
    assert (desk.engine.released, desk.link.closed) == ([left_out], [left_out])
    assert desk.link.opened.keys() == {other}
    desk.free(left_out)
    assert (await desk.ended()).error.reason == "INTERNAL"


async def test_a_lost_sampler_fails_its_requests_and_no_other() -> None:
    desk = Desk(FakeLink(), FakeLink())
    first, second = desk.admit(1), desk.admit(2)
    assert [list(link.requests) for link in desk.links] == [[first], [second]]
    desk.dispatcher.on_sampler_lost(desk.link, [first], Unavailable("it was lost"))
    assert desk.engine.released == [first]
    desk.free(first)
    end = await desk.ended()
    assert (end.request, end.error.reason) == (1, "UNAVAILABLE")


@pytest.mark.parametrize(
    ("links", "chosen"),
    [
        ([FakeLink(opened={8: sampler_pb2.OpenRequest(request=8)}), FakeLink()], 1),
        ([FakeLink(ready=False), FakeLink(opened={8: sampler_pb2.OpenRequest(request=8)})], 1),
        ([FakeLink(lags=True), FakeLink(opened={8: sampler_pb2.OpenRequest(request=8)})], 1),
        ([FakeLink(lags=True, is_behind=True), FakeLink(lags=True, opened={8: sampler_pb2.OpenRequest(request=8)})], 0),
    ],
    ids=["the fewest requests", "ready", "keeps up", "all lag"],
)
def test_a_request_goes_to_the_sampler_that(links: list[FakeLink], chosen: int) -> None:
    desk = Desk(*(FakeLink(ready=one.ready, is_behind=one.is_behind, lags=one.lags, opened=dict(one.opened)) for one in links))
    number = desk.admit(1)
    assert [number in link.opened for link in desk.links] == [index == chosen for index in range(2)]
    assert desk.engine.pauses == ([([number], True)] if desk.links[chosen].is_behind else [])


async def test_a_request_that_is_admitted_when_no_sampler_is_left_fails() -> None:
    desk = Desk()
    number = desk.submit(1)
    desk.link.ready = False
    desk.dispatcher.on_engine_admitted([number])
    desk.free(number)
    assert (await desk.ended()).error.message == "no sampler is ready"


def test_a_request_that_was_cancelled_in_the_queue_is_not_opened() -> None:
    desk = Desk()
    number = desk.submit(1)
    desk.dispatcher.cancel(desk.gateway, 1)
    desk.dispatcher.on_engine_admitted([number])
    assert not desk.link.opened


def test_rows_go_to_the_samplers_of_their_requests() -> None:
    desk = Desk(FakeLink(), FakeLink(), FakeLink())
    numbers = [desk.admit(request) for request in (1, 2)]
    desk.output(rows=rows_of(*numbers))
    assert [link.sent for link in desk.links] == [[[0]], [[1]], []]
    desk.dispatcher.cancel(desk.gateway, 2)
    desk.output(rows=rows_of(numbers[0]))
    assert desk.links[0].sent[-1] is None, "all rows of the step"


def test_requests_of_a_sampler_that_is_behind_pause_until_it_is_not() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.dispatcher.on_sampler_behind(desk.link, True)
    desk.dispatcher.on_sampler_behind(desk.link, False)
    assert desk.engine.pauses == [([number], True), ([number], False)]


async def test_a_first_token_is_told_with_its_times() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.output(started=[Started(number, 3, 99.0, 99.25), Started(12345, 0, 0.0, 0.0)])
    desk.dispatcher.on_sampler_answer(desk.link, SamplerAnswer([], [Parcel(desk.gateway.number, b"x")], [], [], []))
    (started,) = (await desk.told()).started
    assert (started.cached_tokens, started.queue_us, started.prefill_us) == (3, 250_000, 750_000)
    desk.now = 102.0
    desk.answer(finished=[number])
    desk.free(number)
    assert (await desk.ended()).decode_us == 2_000_000


async def test_a_request_the_engine_refuses_fails_with_the_engines_words() -> None:
    desk = Desk()
    number = desk.submit(1)
    desk.dispatcher.on_engine_refused(number, Overloaded("the queue is full"))
    assert (await desk.ended()).error.message == "the queue is full"
    desk.dispatcher.on_engine_refused(number, Overloaded("again"))


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_number_is_refused_while_text_of_it_may_still_come(has_left: bool) -> None:
    desk = Desk()
    desk.link.leaving = [TextKey(desk.gateway.number, 5, 1)]
    desk.submit(5, epoch=2 if has_left else 1)
    if has_left:
        assert len(desk.engine.submitted) == 1
    else:
        end = await desk.ended()
        assert (end.error.field, desk.engine.submitted) == ("request", [])


async def test_nothing_is_taken_without_a_sampler_or_when_refused() -> None:
    desk = Desk(FakeLink(ready=False))
    desk.submit(1)
    desk.link.ready = True
    desk.dispatcher.refuse(Unavailable("the replica is shutting down"))
    desk.submit(2)
    assert [end.error.message for end in (await desk.told()).ended] == ["no sampler is ready", "the replica is shutting down"]


async def test_a_lost_engine_ends_every_request_once() -> None:
    desk = Desk()
    running, cancelled = desk.admit(1), desk.admit(2)
    desk.dispatcher.cancel(desk.gateway, 2)
    desk.dispatcher.on_engine_failed(Unavailable("the engine was lost"))
    ends = {end.request: end for end in (await desk.told()).ended}
    assert (ends[1].error.message, ends[2].outcome) == ("the engine was lost", CANCELLED)
    assert desk.link.closed == [cancelled, running]
    desk.submit(3)
    assert (await desk.ended()).error.reason == "UNAVAILABLE"


async def test_a_request_whose_time_is_over_while_its_sampler_has_the_last_word_fails() -> None:
    desk = Desk()
    in_time, late = desk.submit(1, deadline_ms=2000), desk.submit(2, deadline_ms=1000)
    desk.dispatcher.on_engine_admitted([in_time, late])
    for number in (in_time, late):
        desk.free(number)
    desk.now += 1.0
    desk.dispatcher.fail_overdue()
    end = await desk.ended()
    assert (end.request, end.error.reason) == (2, "DEADLINE_EXCEEDED")


async def test_idle_is_when_the_last_request_has_ended() -> None:
    desk = Desk()
    numbers = [desk.admit(request) for request in (1, 2)]
    desk.dispatcher.fail_all(Unavailable("the replica is shutting down"))
    for number in numbers:
        desk.free(number)
    await desk.dispatcher.wait_until_idle(20)
    assert [end.outcome for end in (await desk.told()).ended] == [FAILED, FAILED]
    assert not desk.gateway.requests
