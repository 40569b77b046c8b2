"""The replica's side of samplers: what they are told, and what they may not do to it."""

from __future__ import annotations

import pytest

from tests.fakes.compute_replica import SAMPLED, Replica, submission, until
from triserve.v1 import common_pb2, compute_pb2


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
    assert end.error.reason == "UNAVAILABLE"
    assert "unanswered" in end.error.message


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
