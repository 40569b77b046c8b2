"""Identical questions at once are answered once, whoever leaves, and whatever fails reaches all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.flow.admission import Admission
from gateway.flow.answer_cache import AnswerCache
from gateway.flow.call import CachePolicy, Call, Wishes
from gateway.flow.limits import Limits
from gateway.flow.pipeline import Pipeline
from gateway.flow.served_model import ServedNames
from gateway.metrics import Metrics
from prompt_cache import CacheConfig, PromptCache
from tests.fakes.fake_stages import MODEL, Clock, FakeReplica, FakeStages, until
from triserve.rpc.errors import Internal, ServiceError
from triserve.v1 import tokenizer_pb2

GREEDY = Wishes(temperature=0.0)


class Scene:
    """A pipeline on one fake replica that does what the test says."""

    def __init__(self) -> None:
        self.replica = FakeReplica("one")
        self.admission = Admission(500)
        self.cache = PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef"))
        self.pipeline = Pipeline(
            fleet=FakeStages(self.replica, model=MODEL),
            cache=AnswerCache(self.cache, None, "tiny"),
            names=ServedNames(name="tiny"),
            limits=Limits(),
            metrics=Metrics(),
            clock=Clock(),
        )

    async def answer(
        self, *, stream: bool = True, on_piece: Callable[[str], Awaitable[None]] | None = None, **fields: Any
    ) -> tuple[str, str, int]:
        """What is said, what the cache did, and the tokens reported."""
        prompt = tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text="abc"))
        known: dict[str, Any] = {
            "request_id": "cmpl-1",
            "tenant": "acme",
            "route": "completions",
            "model": "",
            "prompts": (prompt,),
            "prompt_field": "prompt",
        }
        call = Call(**{**known, "wishes": GREEDY, "stream": stream, **fields})
        said = ""
        with self.admission.enter("acme") as ticket:
            async with self.pipeline.open(call, ticket) as generation:
                while not generation.finished:
                    for piece in await generation.next():
                        said += piece.delta.text
                        if on_piece is not None:
                            await on_piece(said)
                return said, generation.cache.status, generation.usage().completion_tokens

    async def begun(self, count: int, **fields: Any) -> list[asyncio.Task[tuple[str, str, int]]]:
        """So many requests at once, of which the replica has the first."""
        tasks = [asyncio.create_task(self.answer(**fields)) for _ in range(count)]
        await until(lambda: self.replica.attempts and self.admission.active == count)
        for _ in range(20):
            await asyncio.sleep(0)
        return tasks

    def say(self, text: str, token: int, *, end: bool = False, attempt: int = -1) -> None:
        """The replica says something."""
        answer = self.replica.attempts[attempt].answer
        answer.push(len(answer.token_ids), [token], text, "stop" if end else None, now=1.0)


@pytest.mark.parametrize("stream", [True, False])
async def test_two_hundred_identical_requests_are_one_generation(stream: bool) -> None:
    scene = Scene()
    tasks = await scene.begun(200, stream=stream)
    scene.say("Hi", 1)
    scene.say(" there", 2, end=True)
    results = await asyncio.gather(*tasks)
    assert len(scene.replica.attempts) == 1
    assert sorted(results) == sorted([("Hi there", "miss", 2)] + [("Hi there", "hit-exact", 2)] * 199)
    assert (await scene.answer())[1] == "hit-exact"


async def test_who_follows_gets_the_answer_as_it_is_made() -> None:
    scene = Scene()
    heard: list[str] = []

    async def hear(said: str) -> None:
        heard.append(said)

    (leader,) = await scene.begun(1)
    follower = asyncio.create_task(scene.answer(on_piece=hear))
    scene.say("Hi", 1)
    await until(lambda: heard == ["Hi"])
    scene.say("!", 2, end=True)
    assert [await leader, await follower] == [("Hi!", "miss", 2), ("Hi!", "hit-exact", 2)]


@pytest.mark.parametrize("stream", [True, False])
async def test_when_the_maker_leaves_one_who_follows_goes_on_from_what_was_delivered(stream: bool) -> None:
    scene = Scene()
    leader, *followers = await scene.begun(3, stream=stream)
    scene.say("Hi", 1)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    await until(lambda: len(scene.replica.attempts) == 2)
    assert scene.replica.attempts[0].cancelled
    assert list(scene.replica.attempts[1].request.generated_token_ids) == [1]
    second = scene.replica.attempts[1].answer
    second.push(1, [2], " there", "stop", now=2.0)
    assert [await task for task in followers] == [("Hi there", "hit-exact", 2)] * 2
    assert len(scene.replica.attempts) == 2
    assert await scene.answer() == ("Hi there", "hit-exact", 2), "what was made by two is kept whole"


async def test_when_everybody_leaves_nothing_is_made_any_more() -> None:
    scene = Scene()
    tasks = await scene.begun(3)
    for task in tasks:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
    await until(lambda: all(attempt.cancelled for attempt in scene.replica.attempts))
    assert scene.admission.active == 0
    (again,) = await scene.begun(1)
    scene.say("new", 3, end=True)
    assert await again == ("new", "miss", 1)


async def test_a_failure_of_the_model_reaches_all_and_the_next_request_begins_anew() -> None:
    scene = Scene()
    tasks = await scene.begun(3)
    scene.say("Hi", 1)
    scene.replica.attempts[0].answer.fail(Internal("broken"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, ServiceError) and one.message for one in results] == ["broken"] * 3
    (again,) = await scene.begun(1)
    scene.say("new", 3, end=True)
    assert await again == ("new", "miss", 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"wishes": Wishes()},
        {"cache": CachePolicy(read=False)},
        {"cache": CachePolicy(write=False)},
        {"cache": CachePolicy(max_age_s=0)},
        {"wishes": Wishes(temperature=0.0, top_logprobs=1)},
    ],
    ids=["not determined", "a fresh answer", "not to be kept", "none that began before", "log-probabilities"],
)
async def test_who_wants_an_answer_of_its_own_gets_one(fields: dict[str, Any]) -> None:
    scene = Scene()
    tasks = await scene.begun(2, **fields)
    await until(lambda: len(scene.replica.attempts) == 2)
    for attempt in (0, 1):
        scene.say("own", 1, end=True, attempt=attempt)
    assert [(await task)[1] for task in tasks].count("hit-exact") == 0
