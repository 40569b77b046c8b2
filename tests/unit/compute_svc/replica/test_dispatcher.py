"""Requests under way: who hears of what, who is chosen, and that each ends exactly once."""

from __future__ import annotations

import asyncio

import pytest

from compute_svc.replica.parcels import TextKey
from compute_svc.replica.sampler_ledger import Failed, Parcel, SamplerAnswer, Verdict
from compute_svc.wire.step_output import Hidden, Started
from tests.fakes.dispatch_desk import Desk, FakeLink, rows_of
from triserve.rpc.errors import Internal, Overloaded, ServiceError, Unavailable
from triserve.v1 import compute_pb2, sampler_pb2

FINISHED = compute_pb2.REQUEST_OUTCOME_FINISHED
CANCELLED = compute_pb2.REQUEST_OUTCOME_CANCELLED
FAILED = compute_pb2.REQUEST_OUTCOME_FAILED


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
    assert desk.engine.released == [mine]
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
    assert [link.sent for link in desk.links] == [[[numbers[0]]], [[numbers[1]]], []]
    desk.dispatcher.cancel(desk.gateway, 2)
    desk.output(rows=rows_of(numbers[0]))
    assert desk.links[0].sent[-1] == [numbers[0]]


def test_requests_of_a_sampler_that_is_behind_pause_until_it_is_not() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.dispatcher.on_sampler_behind(desk.link, True)
    desk.dispatcher.on_sampler_behind(desk.link, False)
    assert desk.engine.pauses == [([number], True), ([number], False)]


async def test_a_first_token_is_told_with_its_times() -> None:
    desk = Desk()
    number = desk.admit(1)
    desk.output(started=[Started(number, 3, 15.0, 40.25), Started(12345, 0, 0.0, 0.0)])
    desk.dispatcher.on_sampler_answer(desk.link, SamplerAnswer([], [Parcel(desk.gateway.number, b"x")], [], [], []))
    (started,) = (await desk.told()).started
    assert (started.cached_tokens, started.queue_us, started.prefill_us) == (3, 25_250_000, 59_750_000)
    desk.now = 350.0
    desk.answer(finished=[number])
    desk.free(number)
    assert (await desk.ended()).decode_us == 250_000_000


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
    assert (ends[1].decode_us, ends[1].preemptions) == (0, 0), "nothing was computed of it that is known"
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


async def test_one_request_that_is_under_way_keeps_the_replica_from_being_idle() -> None:
    desk = Desk()
    first, last = desk.admit(1), desk.admit(2)
    desk.dispatcher.fail_all(Unavailable("the replica is shutting down"))
    idle = asyncio.ensure_future(desk.dispatcher.wait_until_idle(3600))
    desk.free(first)
    for _ in range(5):
        await asyncio.sleep(0)
    assert not idle.done()
    desk.free(last)
    await asyncio.wait_for(idle, 20)


def test_gateways_and_requests_are_counted_from_one_so_that_an_unset_field_names_none() -> None:
    desk = Desk()
    assert [desk.gateway.number, desk.dispatcher.open_gateway("other").number] == [1, 2]
    assert [desk.submit(1), desk.submit(2), desk.dispatcher.next_number()] == [1, 2, 3]


async def test_a_clock_that_seems_to_go_back_gives_a_time_of_nothing() -> None:
    desk = Desk()
    desk.output(started=[Started(desk.admit(1), 0, 100.0, 100.0)])
    desk.now = 99.0
    desk.output(started=[Started(desk.admit(2), 0, 99.0, 100.0)])
    desk.dispatcher.fail_all(Unavailable("the replica is shutting down"))
    desk.dispatcher.on_engine_failed(Unavailable("the engine was lost"))
    told = await desk.told()
    assert [(started.queue_us, started.prefill_us) for started in told.started] == [(0, 0), (1_000_000, 0)]
    assert [end.decode_us for end in told.ended] == [0, 0]


@pytest.mark.parametrize(
    ("error", "logged"), [(Internal("a row is not finite"), 1), (Overloaded("the queue is full"), 0)], ids=["ours", "not ours"]
)
def test_the_log_tells_an_operator_of_faults_of_our_own_alone(error: ServiceError, logged: int, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    desk.free(desk.admit(1), error)
    assert [record.getMessage() for record in caplog.records] == ["request r1 failed: a row is not finite"] * logged


def test_what_is_told_of_prompts_goes_to_the_samplers_of_their_requests() -> None:
    desk = Desk(FakeLink(), FakeLink())
    numbers = [desk.admit(request) for request in (1, 2)]
    prompts = [sampler_pb2.PromptLogprobs(request=number, first_position=1, logprob=[-1.0]) for number in numbers]
    rows = rows_of(numbers[0])._replace(prompt_logprobs=prompts, computed=[numbers[1]])
    parts = [rows.of(link.has) for link in desk.links]
    assert parts[0] is not None and parts[1] is not None
    assert [(one.numbers.tolist(), list(one.prompt_logprobs), list(one.computed)) for one in parts if one is not None] == [
        ([numbers[0]], prompts[:1], []),
        ([], prompts[1:], numbers[1:]),
    ]
    desk.output(rows=rows)
    assert [link.sent for link in desk.links] == [[[numbers[0]]], [[]]]
    assert rows.of(lambda number: False) is None


async def test_hidden_states_go_to_the_gateway_of_their_request_as_long_as_it_wants_them() -> None:
    desk = Desk()
    first, second = (desk.admit(request, hidden_states=compute_pb2.HIDDEN_STATES_ALL) for request in (1, 2))
    desk.dispatcher.cancel(desk.gateway, 2)
    desk.output(hidden=[Hidden(first, 3, b"12345678", 2), Hidden(second, 0, b"12345678", 2), Hidden(99, 0, b"12345678", 2)])
    expected = compute_pb2.RequestHiddenStates(request=1, first_position=3, vectors=b"12345678", width=2)
    assert list((await desk.told()).hidden_states) == [expected]
