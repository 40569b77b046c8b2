"""The replica's side of samplers: what they are told, and what they may not do to it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from compute_svc.replica.sampler_ledger import SamplerAnswer
from compute_svc.replica.sampler_link import SamplerLink
from compute_svc.wire.step_output import Rows
from tests.fakes.compute_replica import SAMPLED, WIDTH, Replica, submission, until
from tests.fakes.fake_sampler import FakeSampler
from triserve.rpc.errors import Unavailable
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

Response = sampler_pb2.SampleResponse
Spoil = Callable[[Response], Sequence[Response]]


async def test_a_sampler_is_told_all_it_needs(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    whole = replica.model.greedy_answer([1, 2], 4)
    await gateway.submit(7, [1, 2], 4, epoch=3, generated_token_ids=whole[:2], stopping={"stop_strings": ["x"]})
    await gateway.end_of(7)
    frames = replica.samplers[0].frames
    (opening,) = [opening for frame in frames for opening in frame.open]
    assert (opening.gateway_request, opening.epoch, opening.request_id) == (7, 3, "r7")
    assert (list(opening.prompt_token_ids), list(opening.generated_token_ids)) == ([1, 2], whole[:2])
    assert list(opening.stopping.stop_strings) == ["x"]
    assert [frame.frame for frame in frames] == list(range(1, len(frames) + 1))
    assert [position for frame in frames for position in frame.position] == [2, 3]
    assert gateway.tokens[7] == whole[2:]
    assert (gateway.started[7].epoch, gateway.ended[7].epoch) == (3, 3)


async def test_a_stop_by_the_sampler_ends_the_request_and_frees_its_pages(replica: Replica) -> None:
    await (await replica.start()).ready()
    replica.samplers[0].finish_after = 3
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2, 3], 40)
    (end,) = await gateway.end_of(1)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    assert gateway.tokens[1] == replica.model.greedy_answer([1, 2, 3], 3)
    await replica.idle()


async def test_a_sampler_of_another_model_is_not_used(replica: Replica) -> None:
    replica.fingerprint = common_pb2.Fingerprint(tokenizer_sha256="other")
    await replica.start()
    await until(lambda: bool(replica.samplers[0].hellos))
    assert not await replica.is_ready()


async def test_a_lost_sampler_fails_its_requests_and_comes_back(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    sampler.may_answer.clear()
    await gateway.submit(1, [1, 2], 40, sampling=SAMPLED)
    await gateway.submit(2, [3, 4], 40)
    await until(lambda: any(frame.request for frame in sampler.frames))
    await sampler.stop()
    ends = await gateway.end_of(1, 2)
    assert [end.error.reason for end in ends] == ["UNAVAILABLE"] * 2
    await replica.idle()
    sampler.may_answer.set()
    await sampler.start(replica.settings.samplers[0])
    await replica.ready()
    await gateway.submit(3, [1, 2], 3)
    (end,) = await gateway.end_of(3)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED


async def test_requests_are_spread_over_samplers_and_a_lost_one_harms_only_its_own(replica: Replica) -> None:
    await (await replica.start(num_samplers=2)).ready()
    await until(lambda: all(sampler.hellos for sampler in replica.samplers))
    gateway = await replica.gateway()
    for sampler in replica.samplers:
        sampler.may_answer.clear()
    await gateway.send(submit=[submission(request, [request, 2], 6, sampling=SAMPLED) for request in range(4)])
    await until(lambda: all(sum(len(frame.open) for frame in sampler.frames) == 2 for sampler in replica.samplers))
    mine = [opening.gateway_request for frame in replica.samplers[1].frames for opening in frame.open]
    await replica.samplers[0].stop()
    replica.samplers[1].may_answer.set()
    ends = {end.request: end for end in await gateway.end_of(0, 1, 2, 3)}
    for request, end in ends.items():
        assert end.outcome == (compute_pb2.REQUEST_OUTCOME_FINISHED if request in mine else compute_pb2.REQUEST_OUTCOME_FAILED)
        if request in mine:
            assert gateway.tokens[request] == replica.model.greedy_answer([request, 2], 6)


async def test_a_sampler_that_leaves_frames_unanswered_is_lost(replica: Replica) -> None:
    await (await replica.start(sampler_timeout_s=0.1)).ready()
    gateway = await replica.gateway()
    replica.samplers[0].may_answer.clear()
    await gateway.submit(1, [1, 2], 3)
    (end,) = await gateway.end_of(1)
    assert (end.error.reason, end.error.message) == (
        "UNAVAILABLE",
        "the sampler process that had the request was lost: it left frame 1 unanswered for 0.1 s",
    )


async def test_a_request_pauses_while_its_sampler_is_behind(replica: Replica) -> None:
    await (await replica.start(max_unanswered_frames=4, sizes={"max_model_len_tokens": 512, "num_pages": 128})).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    sampler.may_answer.clear()
    await gateway.submit(1, [1, 2], 400)
    seen: list[int] = []

    async def stands_still() -> bool:
        seen.append((await gateway.load()).decode_tokens)
        return seen[-1] > 0 and seen[-20:] == [seen[-1]] * 20

    await until(stands_still)
    assert len(sampler.frames) <= 4
    assert seen[-1] < 400
    sampler.may_answer.set()
    await gateway.end_of(1)
    assert gateway.tokens[1] == replica.model.greedy_answer([1, 2], 400)


async def test_a_failure_in_the_sampler_fails_its_request_alone(replica: Replica) -> None:
    await (await replica.start()).ready()
    gateway = await replica.gateway()
    replica.samplers[0].fail_at = 6
    await gateway.send(submit=[submission(1, [1, 2], 20), submission(2, [3, 4], 5)])
    (failed, fine) = await gateway.end_of(1, 2)
    assert (failed.error.reason, failed.error.message) == ("INTERNAL", "the sampler was told to fail")
    assert fine.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


@pytest.mark.parametrize("sampling", [common_pb2.SamplingParams(temperature=0), SAMPLED], ids=["greedy", "sampled"])
async def test_a_sampler_that_never_ends_a_request_does_not_leave_it_hanging(replica: Replica, sampling: common_pb2.SamplingParams) -> None:
    await (await replica.start()).ready()
    replica.samplers[0].ends_requests = False
    gateway = await replica.gateway()
    await gateway.submit(1, [1, 2], 3, sampling=sampling)
    (end,) = await gateway.end_of(1)
    assert end.error.reason == "INTERNAL"
    await until(lambda: not replica.samplers[0].open)


def _changed(**fields: object) -> Spoil:
    """Replaces fields of an answer that has verdicts; the others stay."""

    def spoil(response: Response) -> Sequence[Response]:
        if response.request:
            for name, value in fields.items():
                response.ClearField(name)  # type: ignore[arg-type]
                response.MergeFrom(Response(**{name: value}))  # type: ignore[arg-type]
        return [response]

    return spoil


def _without_verdicts(response: Response) -> Sequence[Response]:
    for name in ("request", "position", "token", "parcels", "finished"):
        response.ClearField(name)
    return [response]


SPOILT: dict[str, Spoil] = {
    "columns of unequal length": _changed(position=[]),
    "a token without a logit": _changed(token=[WIDTH]),
    "another position": _changed(position=[7]),
    "an unknown request": _changed(request=[999]),
    "an end of nobody": _changed(finished=[999]),
    "a failure of nobody": _changed(failed=[sampler_pb2.SampleFailure(request=999)]),
    "a frame of the future": _changed(frame=999),
    "an answer twice": lambda response: [response, response],
    "a second hello": _changed(hello=sampler_pb2.GetSamplerInfoResponse()),
    "a parcel for nobody": _changed(parcels=[sampler_pb2.Parcel(gateway=99)]),
    "a parcel of garbage": _changed(parcels=[sampler_pb2.Parcel(gateway=1, delta_frame=b"\xff\xff")]),
    "text for a stranger": _changed(
        parcels=[
            sampler_pb2.Parcel(
                gateway=1,
                delta_frame=sampler_pb2.DeltaFrame(
                    request=[2],
                    epoch=[0],
                    first_position=[0],
                    num_tokens=[1],
                    text=["bad"],
                    finish_reason=[common_pb2.FINISH_REASON_STOP],
                    token=[1],
                ).SerializeToString(),
            )
        ]
    ),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
async def test_a_malformed_answer_costs_its_sampler_the_link_and_nobody_else_anything(replica: Replica, spoil: Spoil) -> None:
    await (await replica.start(num_samplers=2)).ready()
    await until(lambda: all(sampler.hellos for sampler in replica.samplers))
    gateway = await replica.gateway()
    for sampler in replica.samplers:
        sampler.may_answer.clear()
    await gateway.send(submit=[submission(request, [request, 2], 6, sampling=SAMPLED) for request in (1, 2)])
    await until(lambda: all(any(frame.request for frame in sampler.frames) for sampler in replica.samplers))
    hostile = next(sampler for sampler in replica.samplers if 1 in _requests(sampler))
    hostile.spoil = spoil
    for sampler in replica.samplers:
        sampler.may_answer.set()
    bad, good = await gateway.end_of(1, 2)
    assert good.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    assert gateway.tokens[2] == replica.model.greedy_answer([2, 2], 6)
    assert bad.error.reason == "UNAVAILABLE"
    assert bad.error.message.startswith("the sampler process that had the request was lost: it sent a malformed message: ")
    hostile.spoil = None
    await gateway.submit(3, [1, 2], 3)
    (end,) = await gateway.end_of(3)
    assert end.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


def _requests(sampler: FakeSampler) -> set[int]:
    return {opening.gateway_request for frame in sampler.frames for opening in frame.open}


async def test_a_sampler_cannot_draw_for_a_request_of_another(replica: Replica) -> None:
    await (await replica.start(num_samplers=2)).ready()
    await until(lambda: all(sampler.hellos for sampler in replica.samplers))
    gateway = await replica.gateway()
    for sampler in replica.samplers:
        sampler.may_answer.clear()
    await gateway.send(submit=[submission(request, [request, 2], 6, sampling=SAMPLED) for request in (1, 2)])
    await until(lambda: all(any(frame.request for frame in sampler.frames) for sampler in replica.samplers))
    hostile = next(sampler for sampler in replica.samplers if 1 in _requests(sampler))
    victim = next(
        opening.request for sampler in replica.samplers for frame in sampler.frames for opening in frame.open if sampler is not hostile
    )
    hostile.spoil = _changed(request=[victim])
    hostile.may_answer.set()
    (bad,) = await gateway.end_of(1)
    assert bad.error.reason == "UNAVAILABLE"
    for sampler in replica.samplers:
        sampler.may_answer.set()
    await gateway.end_of(2)
    assert gateway.tokens[2] == replica.model.greedy_answer([2, 2], 6)


async def test_a_row_without_a_verdict_fails_its_request_alone_and_holds_nothing(replica: Replica) -> None:
    await (await replica.start(sizes={"max_running_requests": 1})).ready()
    gateway = await replica.gateway()
    replica.samplers[0].spoil = lambda response: _without_verdicts(response) if 1 in response.request else [response]
    # The one batch slot is what the second waits for.
    await gateway.send(submit=[submission(1, [1, 2], 6, sampling=SAMPLED), submission(2, [2, 2], 6, sampling=SAMPLED)])
    bad, good = await gateway.end_of(1, 2)
    assert (bad.error.reason, bad.error.message) == ("INTERNAL", "the sampler left out a part of the answer")
    assert good.outcome == compute_pb2.REQUEST_OUTCOME_FINISHED
    await replica.idle()


async def test_a_sampler_that_ends_before_its_hello_is_unavailable_and_no_fault_of_ours(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    rude = FakeSampler(replica.fingerprint)
    rude.greets = False
    replica.samplers.append(rude)
    link = _link(await rude.start(), replica.fingerprint, _Heard())
    link.start()
    with caplog.at_level(logging.INFO):
        await until(lambda: len(rude.hellos) >= 2)
    await link.close()
    assert link.problem == "it ended the stream before its hello"
    assert not link.ready
    assert "Traceback" not in caplog.text and not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("way", ["lost", "silent", "malformed", "gone"])
async def test_no_error_tells_a_client_where_a_sampler_is(replica: Replica, way: str) -> None:
    await (await replica.start(sampler_timeout_s=0.1 if way == "silent" else 20.0)).ready()
    gateway = await replica.gateway()
    sampler = replica.samplers[0]
    if way == "malformed":
        sampler.spoil = _changed(position=[])
    else:
        sampler.may_answer.clear()
    if way == "gone":
        await sampler.stop()
        await until(replica.is_not_ready)
    await gateway.submit(1, [1, 2], 4, sampling=SAMPLED)
    if way == "lost":
        await until(lambda: any(frame.request for frame in sampler.frames))
        await sampler.stop()
    (end,) = await gateway.end_of(1)
    assert end.error.message
    assert not re.search(r"\d+\.\d+\.\d+|localhost|:\d", end.error.message), end.error.message


@dataclass
class _Heard:
    """A listener that remembers."""

    answers: list[SamplerAnswer] = field(default_factory=list)
    lost: list[tuple[list[int], str]] = field(default_factory=list)

    def on_sampler_changed(self, link: SamplerLink) -> None:
        """Nothing."""

    def on_sampler_answer(self, link: SamplerLink, answer: SamplerAnswer) -> None:
        """Remembers it."""
        self.answers.append(answer)

    def on_sampler_behind(self, link: SamplerLink, behind: bool) -> None:
        """Nothing."""

    def on_sampler_silent(self, link: SamplerLink, numbers: Sequence[int]) -> None:
        """Nothing."""

    def on_sampler_lost(self, link: SamplerLink, numbers: Sequence[int], error: Unavailable) -> None:
        """Remembers it."""
        self.lost.append((list(numbers), error.message))


def _link(target: str, fingerprint: common_pb2.Fingerprint, listener: _Heard, clock: Callable[[], float] = lambda: 0.0) -> SamplerLink:
    hello = sampler_pb2.ComputeHello(compute_name="c", fingerprint=fingerprint, logits_width=WIDTH)
    return SamplerLink(target, hello, listener, max_unanswered=8, answer_timeout_s=20.0, clock=clock)


async def test_a_sampler_lags_when_it_leaves_a_frame_unanswered_for_a_second_and_no_longer_when_it_answers(replica: Replica) -> None:
    now = 100.0
    sampler = FakeSampler(replica.fingerprint)
    replica.samplers.append(sampler)
    heard = _Heard()
    link = _link(await sampler.start(), replica.fingerprint, heard, lambda: now)
    link.start()
    await until(lambda: link.ready)
    assert not link.lags
    sampler.may_answer.clear()
    link.open(sampler_pb2.OpenRequest(request=1, gateway=1, gateway_request=5))
    position, count, token = (np.array([value], np.uint32) for value in (0, 1, 3))
    link.send_rows(Rows(np.array([1], np.uint64), position, count, token, [], []))
    await until(lambda: bool(sampler.frames))
    assert not link.lags
    now = 101.5
    assert link.lags and not link.is_behind
    sampler.may_answer.set()
    await until(lambda: bool(heard.answers))
    assert not link.lags
    await link.close()
    assert heard.lost == [([1], "the sampler process that had the request was lost: it was left")]
