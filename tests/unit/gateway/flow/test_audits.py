"""Answers of the semantic cache are checked against the model in the background, and a check that fails hurts nobody."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from gateway.flow.admission import Admission
from gateway.flow.answer_cache import AnswerCache
from gateway.flow.call import Call, Wishes
from gateway.flow.limits import Limits
from gateway.flow.pipeline import Pipeline
from gateway.flow.served_model import ServedNames
from gateway.metrics import Metrics
from prompt_cache import CacheConfig, PromptCache
from tests.fakes.fake_stages import MODEL, Clock, FakeAttempt, FakeReplica, FakeStages, until
from tests.fakes.gateway_fleet import eventually
from tests.fakes.semantic_parts import SemanticScene
from triserve.rpc.errors import Internal, Unavailable
from triserve.v1 import tokenizer_pb2

QUESTION = "What is the capital of France?"


class Scene:
    """A pipeline whose semantic cache has an answer, and checks every hit."""

    def __init__(self, **limits: Any) -> None:
        self.replica = FakeReplica("one", play=_says("Paris."))
        self.semantic = SemanticScene(audited_share=1.0)
        self.admission = Admission(8)
        cache = PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef"))
        self.pipeline = Pipeline(
            fleet=FakeStages(self.replica, model=MODEL),
            cache=AnswerCache(cache, self.semantic.cache, "tiny", wall=lambda: self.semantic.now),
            names=ServedNames(name="tiny"),
            limits=Limits(**limits),
            metrics=Metrics(),
            clock=Clock(),
        )

    async def ask(self) -> tuple[str, str]:
        """What the cache did, and what is said."""
        chat = tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage(role="user", content=QUESTION)])
        prompts = (tokenizer_pb2.EncodeRequest(chat=chat),)
        call = Call(request_id="r", tenant="t", route="chat", model="", prompts=prompts, prompt_field="messages", wishes=Wishes())
        said = ""
        with self.admission.enter("t") as ticket:
            async with self.pipeline.open(call, ticket) as generation:
                while not generation.finished:
                    said += "".join(piece.delta.text for piece in await generation.next())
                status = generation.cache.status
        await self.semantic.cache.drain()
        return status, said

    async def warmed(self) -> Scene:
        """Itself, with an answer that is kept."""
        await self.semantic.started()
        assert await self.ask() == ("miss", "Paris.")
        return self


def _says(text: str) -> Any:
    def play(attempt: FakeAttempt) -> None:
        attempt.answer.push(0, [1, 7], text, "stop", now=1.0)

    return play


@pytest.mark.parametrize(("now_says", "comparison"), [("Paris.", "same"), ("It is Lyon.", "different")])
async def test_a_hit_is_compared_with_what_the_model_says_now(now_says: str, comparison: str) -> None:
    scene = await Scene().warmed()
    scene.replica.play = _says(now_says)
    assert await scene.ask() == ("hit-semantic", "Paris.")
    await until(lambda: len(scene.replica.attempts) == 2 and scene.semantic.cache.comparer.comparisons[comparison])
    assert sum(scene.semantic.cache.comparer.comparisons.values()) == 1


@pytest.mark.parametrize("error", [Unavailable("gone"), Internal("broken")])
async def test_a_check_that_fails_is_told_in_the_log_and_counts_for_nothing(error: Any, caplog: pytest.LogCaptureFixture) -> None:
    scene = await Scene(retry_wait_s=0).warmed()
    scene.replica.play = lambda attempt: attempt.answer.fail(error)
    with caplog.at_level(logging.INFO):
        assert await scene.ask() == ("hit-semantic", "Paris.")
        await until(lambda: "was not checked" in caplog.text)
    assert scene.semantic.cache.comparer.comparisons == {"same": 0, "different": 0}


async def test_a_check_of_a_model_that_says_nothing_ends_with_the_time_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    scene = await Scene(request_timeout_s=0.05).warmed()
    scene.replica.play = lambda attempt: None
    with caplog.at_level(logging.INFO):
        assert await scene.ask() == ("hit-semantic", "Paris.")
        await eventually(lambda: "was not checked" in caplog.text)
    assert scene.replica.attempts[-1].cancelled


async def test_no_more_than_a_few_checks_run_at_once() -> None:
    scene = await Scene().warmed()
    scene.replica.play = lambda attempt: None
    for _ in range(5):
        assert (await scene.ask())[0] == "hit-semantic"
    await until(lambda: len(scene.replica.attempts) == 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(scene.replica.attempts) == 1 + 2
    scene.pipeline.abort_all(Unavailable("leaving"))
    await until(lambda: all(attempt.cancelled for attempt in scene.replica.attempts[1:]))
