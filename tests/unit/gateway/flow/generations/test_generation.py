"""Answers under way: what of them is tried again, what is not, and figures that are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from gateway.flow.call import Call
from gateway.flow.generations.answer import Delta, Started
from gateway.flow.generations.generation import CacheReport, Choice, EncodedPrompt, Piece, Timeline, Usage
from gateway.flow.generations.live_generation import LiveGeneration
from gateway.flow.generations.replay import ReplayedGeneration
from gateway.flow.limits import Limits
from prompt_cache import CachedAnswer, CachedDelta
from tests.fakes.fake_stages import Clock, FakeReplica, FakeStages, says, until
from triserve.rpc.errors import Internal, InvalidRequest, Overloaded, ServiceError, Unavailable
from triserve.v1 import common_pb2

LOST = Unavailable("the compute process that had the request was lost")
ABC = says(("a", [1]), ("b", [2]), ("c", [3, 7]))


class Notes:
    """An observer."""

    def __init__(self) -> None:
        self.retries = 0
        self.gaps: list[float] = []

    def retried(self) -> None:
        self.retries += 1

    def gap(self, seconds: float) -> None:
        self.gaps.append(seconds)


def prompt(*token_ids: int, encode_us: int = 0) -> EncodedPrompt:
    return EncodedPrompt(token_ids=token_ids, system_tokens=1, encode_us=encode_us)


def choices(*prompts: EncodedPrompt, n: int = 1) -> list[Choice]:
    return [
        Choice(
            number=index * n + number,
            prompt=one,
            prompt_index=index,
            sampling=common_pb2.SamplingParams(seed=number),
            stopping=common_pb2.StoppingParams(max_tokens=9),
        )
        for index, one in enumerate(prompts)
        for number in range(n)
    ]


class Scene:
    """A generation on fake replicas."""

    def __init__(
        self, *replicas: FakeReplica, of: list[Choice] | None = None, stream: bool = False, priority: int = 0, **limits: Any
    ) -> None:
        self.stages = FakeStages(*replicas)
        self.notes = Notes()
        self.clock = Clock()
        self.slept: list[float] = []
        call = Call(
            request_id="cmpl-1",
            tenant="acme",
            route="completions",
            model="",
            prompts=((1,),),
            prompt_field="prompt",
            stream=stream,
            priority=priority,
        )
        self.generation = LiveGeneration(
            of or choices(prompt(11, 12)),
            call=call,
            replicas=self.stages,
            limits=Limits(**limits),
            remaining_ms=lambda: 4321,
            cache=CacheReport("miss"),
            observer=self.notes,
            clock=self.clock,
            sleep=self.sleep,
        )

    async def sleep(self, seconds: float) -> None:
        """Notes how long it would be."""
        self.slept.append(seconds)

    async def read(self) -> dict[int, Delta]:
        """Reads to the end; what each choice said, as one delta."""
        whole: dict[int, Delta] = {}
        while not self.generation.finished:
            for index, delta in await self.generation.next():
                before = whole.get(index, Delta("", [], [], None))
                whole[index] = Delta(before.text + delta.text, [*before.token_ids, *delta.token_ids], [], delta.finish_reason)
        self.generation.close()
        return whole


async def fails(read: Awaitable[Any]) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await read
    return caught.value


async def test_a_replica_gets_the_whole_request() -> None:
    replica = FakeReplica("one", play=ABC)
    scene = Scene(replica)
    scene.generation.submit()
    assert await scene.read() == {0: Delta("abc", [1, 2, 3, 7], [], "stop")}
    request = replica.attempts[0].request
    assert (request.epoch, request.request_id, request.tenant, request.deadline_ms) == (0, "cmpl-1", "acme", 4321)
    assert (list(request.token_ids), list(request.generated_token_ids), request.system_tokens) == ([11, 12], [], 1)
    assert (request.sampling.seed, request.stopping.max_tokens, request.priority) == (0, 9, 0)


def test_without_a_replica_nothing_is_submitted() -> None:
    async def run() -> None:
        for priority, words in ((0, "no compute process is ready"), (3, "no compute process that serves by priority is ready")):
            with pytest.raises(Unavailable, match=words):
                Scene(FakeReplica("one", ready=priority != 0), priority=priority).generation.submit()

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1, 2])
async def test_what_was_lost_before_anything_was_taken_goes_on_elsewhere_and_is_the_same(stream: bool, num_tokens: int) -> None:
    first, second = FakeReplica("one"), FakeReplica("two", play=ABC)
    scene = Scene(first, second, stream=stream)
    scene.generation.submit()
    answer = first.attempts[0].answer
    if num_tokens:
        answer.begin(Started(5, 100, 200))
    for position in range(num_tokens):
        answer.push(position, [position + 1], "abc"[position], now=1.0)
    answer.fail(LOST)
    assert await scene.read() == {0: Delta("abc", [1, 2, 3, 7], [], "stop")}
    resumed = second.attempts[0].request
    assert (resumed.epoch, list(resumed.generated_token_ids)) == (1, [1, 2][:num_tokens])
    assert resumed.sampling == first.attempts[0].request.sampling
    assert scene.notes.retries == 1
    assert scene.generation.usage() == Usage(2, 4, 5 if num_tokens else 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_came_before_a_loss_is_not_delivered_before_the_choice_goes_on_and_so_may_be_lost_again(stream: bool) -> None:
    replicas = [FakeReplica("one"), FakeReplica("two"), FakeReplica("three")]
    scene = Scene(*replicas, stream=stream)
    scene.generation.submit()
    reading = asyncio.create_task(scene.read())
    for position, replica in enumerate(replicas):
        await until(lambda replica=replica: replica.attempts)  # type: ignore[misc]
        answer = replica.attempts[0].answer
        answer.push(position, [position + 1], "abc"[position], "stop" if position == 2 else None, now=0.0)
        if position < 2:
            answer.fail(LOST)
    assert await reading == {0: Delta("abc", [1, 2, 3], [], "stop")}


async def test_what_was_begun_to_be_delivered_is_not_tried_again() -> None:
    first, second = FakeReplica("one"), FakeReplica("two", play=ABC)
    scene = Scene(first, second, stream=True)
    scene.generation.submit()
    answer = first.attempts[0].answer
    answer.push(0, [1], "a", now=0.0)
    assert await scene.generation.next() == [Piece(0, Delta("a", [1], [], None))]
    answer.push(1, [2], "b", now=0.0)
    answer.fail(LOST)
    assert await scene.generation.next() == [Piece(0, Delta("b", [2], [], None))], "what came before the error is delivered"
    assert await fails(scene.generation.next()) is LOST
    assert await fails(scene.generation.next()) is LOST, "and it stays failed"
    assert not second.attempts


@pytest.mark.parametrize("error", [Internal("internal error"), InvalidRequest("bad")])
async def test_a_fault_of_the_request_itself_is_not_tried_again(error: ServiceError) -> None:
    first, second = FakeReplica("one"), FakeReplica("two", play=ABC)
    scene = Scene(first, second)
    scene.generation.submit()
    first.attempts[0].answer.fail(error)
    assert await fails(scene.generation.next()) is error
    assert not second.attempts


async def test_only_the_choice_that_was_lost_is_tried_again() -> None:
    first, second = FakeReplica("one"), FakeReplica("two", play=ABC)
    scene = Scene(first, second, of=choices(prompt(1), n=2))
    scene.generation.submit()
    ABC(first.attempts[0])
    first.attempts[1].answer.fail(LOST)
    assert await scene.read() == {index: Delta("abc", [1, 2, 3, 7], [], "stop") for index in (0, 1)}
    assert [attempt.request.sampling.seed for attempt in second.attempts] == [1]


async def test_a_lone_replica_is_asked_again_when_it_is_back() -> None:
    only = FakeReplica("one")
    scene = Scene(only)
    scene.generation.submit()
    reading = asyncio.create_task(scene.read())
    only.ready = False
    only.attempts[0].answer.fail(LOST)
    await until(lambda: scene.generation._retries)
    assert not reading.done()
    only.play = ABC
    scene.stages.change(only, ready=True)
    assert await reading == {0: Delta("abc", [1, 2, 3, 7], [], "stop")}
    assert [attempt.epoch for attempt in only.attempts] == [0, 1]


async def test_a_replica_that_does_not_come_back_in_time_is_given_up() -> None:
    only = FakeReplica("one", ready=True)
    scene = Scene(only, retry_wait_s=0.001)
    scene.generation.submit()
    only.ready = False
    only.attempts[0].answer.fail(LOST)
    assert await fails(scene.generation.next()) is LOST
    assert scene.notes.retries == 0
    assert len(scene.generation._failed_on[0]) == 2, "it was waited for once, and not again for each attempt that is left"


async def test_before_replicas_that_failed_it_get_a_choice_again_it_waits_twice_as_long_each_time() -> None:
    only = FakeReplica("one", play=lambda attempt: attempt.answer.fail(LOST))
    scene = Scene(only)
    scene.generation.submit()
    assert await fails(scene.generation.next()) is LOST
    assert scene.slept == [0.05, 0.1, 0.2]
    assert len(only.attempts) == 4


async def test_where_nobody_is_to_wait_for_a_lost_replica_the_choice_fails_at_once() -> None:
    only = FakeReplica("one")
    scene = Scene(only, retry_wait_s=0.0)
    scene.generation.submit()
    only.attempts[0].answer.fail(LOST)
    assert await fails(scene.generation.next()) is LOST
    assert (len(only.attempts), scene.slept, scene.generation._retries) == (1, [], {})


@pytest.mark.parametrize(("priority", "chosen"), [(0, 0), (-1, 1), (1, 1), (3, 1)])
async def test_any_priority_but_the_normal_one_goes_to_a_replica_that_looks_at_it(priority: int, chosen: int) -> None:
    replicas = FakeReplica("one"), FakeReplica("two", by_priority=True)
    Scene(*replicas, priority=priority).generation.submit()
    assert [len(replica.attempts) for replica in replicas] == [1 - chosen, chosen]
    assert replicas[chosen].attempts[0].request.priority == priority


@pytest.mark.parametrize("wait_s", [0.0, 15.0])
async def test_a_full_replica_is_not_asked_again_but_another_is(wait_s: float) -> None:
    full = Overloaded("the queue is full")
    first, second = FakeReplica("one"), FakeReplica("two")
    scene = Scene(first, second, retry_wait_s=wait_s)
    scene.generation.submit()
    reading = asyncio.create_task(fails(scene.generation.next()))
    first.attempts[0].answer.fail(full)
    await until(lambda: second.attempts)
    second.attempts[0].answer.fail(full)
    assert await reading is full
    assert len(first.attempts) == 1


async def test_a_choice_is_tried_again_three_times_and_no_more() -> None:
    replicas = [FakeReplica(str(number)) for number in range(5)]
    scene = Scene(*replicas)
    scene.generation.submit()
    reading = asyncio.create_task(fails(scene.generation.next()))
    for replica in replicas[:4]:
        await until(lambda replica=replica: replica.attempts)  # type: ignore[misc]
        replica.attempts[0].answer.fail(LOST)
    assert await reading is LOST
    assert [len(replica.attempts) for replica in replicas] == [1, 1, 1, 1, 0]
    assert [replica.attempts[0].epoch for replica in replicas[:4]] == [0, 1, 2, 3]


async def test_closing_aborts_what_is_under_way_and_what_was_to_come() -> None:
    first = FakeReplica("one")
    scene = Scene(first, of=choices(prompt(1), n=2))
    scene.generation.submit()
    reading = asyncio.create_task(scene.generation.next())
    first.ready = False
    first.attempts[0].answer.fail(LOST)
    await until(lambda: scene.generation._retries)
    reading.cancel()
    scene.generation.close()
    scene.stages.change(first, ready=True)
    await asyncio.gather(reading, *scene.generation._retries.values(), return_exceptions=True)
    assert len(first.attempts) == 2
    assert all(attempt.cancelled for attempt in first.attempts)


async def test_figures_are_exact() -> None:
    clock = Clock()
    one, two = prompt(1, 2, 3, encode_us=1500), prompt(4, encode_us=250)
    replica = FakeReplica("one")
    scene = Scene(replica, of=choices(one, two, n=2))
    scene.generation.submit()
    assert scene.generation.usage() == Usage(4, 0, 0)
    assert scene.generation.timeline() == Timeline(1.5, 0, 0, 0)
    for number, attempt in enumerate(replica.attempts):
        attempt.answer.begin(Started(cached_tokens=number + 1, queue_us=1500 * number, prefill_us=7250 - number))
        attempt.answer.push(0, [1], "a", now=clock.now)
        attempt.answer.push(1, [2, 7], "b", "stop", now=clock.now + 0.25 * (number + 1))
    # Of the choices of one prompt the first tells what was cached: 1 of the first prompt, 3 of the second.
    assert scene.generation.usage() == Usage(4, 12, 4)
    assert scene.generation.timeline() == Timeline(tokenize_ms=1.5, queue_ms=4.5, prefill_ms=7.25, decode_ms=1000.0)
    await scene.read()


async def test_gaps_are_those_between_deltas_of_one_choice_as_they_are_taken() -> None:
    replica = FakeReplica("one")
    scene = Scene(replica, of=choices(prompt(1), n=2), stream=True)
    scene.clock.now = 1.5
    scene.generation.submit()
    first, second = (attempt.answer for attempt in replica.attempts)
    for answer, position, finish, wait_s in (
        (first, 0, None, 0.0),
        (second, 0, None, 2.0),
        (first, 1, None, 0.5),
        (first, 2, "stop", 0.25),
    ):
        scene.clock.now += wait_s
        answer.push(position, [1], "a", finish, now=0.0)  # type: ignore[arg-type]
        await scene.generation.next()
    assert scene.notes.gaps == [2.5, 0.25]
    scene.generation.close()


async def test_whole_answers_have_no_gaps() -> None:
    replica = FakeReplica("one", play=ABC)
    scene = Scene(replica)
    scene.generation.submit()
    await scene.read()
    assert scene.notes.gaps == []


async def test_a_reader_of_a_silent_stream_is_woken_with_nothing() -> None:
    scene = Scene(FakeReplica("one"), stream=True, keep_alive_s=0.001)
    scene.generation.submit()
    assert await scene.generation.next() == []
    scene.generation.close()


async def test_a_replayed_answer_comes_in_the_deltas_in_which_it_was_made() -> None:
    kept = CachedAnswer(deltas=(CachedDelta("a", (1, 2)), CachedDelta("", (7,))), finish_reason="stop", prompt_tokens=5, created_at=0)
    generation = ReplayedGeneration(kept, [1, 2, 3, 4, 5], cache=CacheReport("hit-exact", 9))
    assert await generation.next() == [Piece(0, Delta("a", [1, 2], [], None))]
    assert not generation.finished
    assert await generation.next() == [Piece(0, Delta("", [7], [], "stop"))]
    assert generation.finished
    assert (generation.usage(), generation.timeline(), generation.cache) == (
        Usage(5, 3, 5),
        Timeline(0, 0, 0, 0),
        CacheReport("hit-exact", 9),
    )
    generation.close()


async def test_a_reader_of_a_replayed_answer_lets_others_run_between_deltas_and_waits_for_nothing() -> None:
    kept = CachedAnswer(deltas=(CachedDelta("a", (1,)), CachedDelta("b", (2,))), finish_reason="length", prompt_tokens=1, created_at=0)
    generation = ReplayedGeneration(kept, [1], cache=CacheReport("hit-exact", 9))
    reading = asyncio.create_task(generation.next())
    await asyncio.sleep(0)
    assert not reading.done()
    await until(reading.done)
    assert not generation.finished
    assert generation.prompt_token_ids(0) == [1]
    generation.wake()
