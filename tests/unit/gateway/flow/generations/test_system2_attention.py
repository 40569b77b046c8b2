"""A last turn is rewritten by the model before it answers: both steps, what is counted, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import NotCached
from gateway.flow.call import AnswerReading, CachePolicy, Wishes
from gateway.flow.generations.answer import FinishReason, Started
from gateway.flow.generations.generation import Usage
from gateway.flow.generations.system2_attention import INSTRUCTION, rewritten_turn
from gateway.flow.search.kinds import BestOf
from tests.fakes.fake_stages import MODEL, FakeAttempt, FakeReplica, until
from tests.fakes.search_scene import SearchScene, call
from triserve.rpc.errors import InvalidRequest, Overloaded, PromptTooLong, ServiceError, Unavailable
from triserve.v1 import common_pb2, sampler_pb2, tokenizer_pb2

WIDE = replace(MODEL, max_model_len_tokens=4096)
THINKING = replace(WIDE, reasoning_format="think")
SYSTEM, EARLIER, LAST = "Be brief.", "Hi", "I like cats. I am sure it is 5. What is 2 + 2?"
FIRST = f"{INSTRUCTION}\n\n<<<\n{LAST}\n>>>"


def chat(last: str = LAST, role: str = "user", **fields: Any) -> tokenizer_pb2.EncodeRequest:
    turns = (("system", SYSTEM), ("user", EARLIER), ("assistant", "Hello"), (role, last))
    messages = [tokenizer_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return tokenizer_pb2.EncodeRequest(chat=tokenizer_pb2.ChatInput(messages=messages, **fields))


def replica(turn: str = " What is 2 + 2? ", answer: str = "4", finish: FinishReason = "stop") -> FakeReplica:
    """Writes this turn, and answers whatever else it is asked."""

    def play(attempt: FakeAttempt) -> None:
        prompt = bytes(attempt.request.token_ids).decode()
        reason: FinishReason
        text, reason = (turn, finish) if prompt.startswith(INSTRUCTION) else (answer, "stop")
        attempt.answer.begin(Started(2, 3000, 7000))
        for at, character in enumerate(text):
            attempt.answer.push(at, [ord(character)], character, now=0.0)
        entries = [sampler_pb2.TokenLogprobs(logprob=-1.0)] if attempt.request.sampling.HasField("top_logprobs") else []
        attempt.answer.push(len(text), [7], "", reason, entries, now=0.0)

    return FakeReplica("one", play=play)


class Scene(SearchScene):
    """What is asked of the model, in words."""

    def __init__(self, one: FakeReplica | None = None, **options: Any) -> None:
        self.replica = one or replica()
        super().__init__(self.replica, **{"model": WIDE, **options})

    @property
    def asked(self) -> list[str]:
        """Prompts of all attempts."""
        return [bytes(attempt.request.token_ids).decode() for attempt in self.replica.attempts]

    async def ask(self, prompt: Any = None, **fields: Any) -> Any:
        """See `answer`."""
        prompts = (chat() if prompt is None else prompt,)
        return await self.answer(*prompts, **{"prompt_field": "messages", "route": "chat", "system2_attention": True, **fields})

    async def refused(self, prompt: Any = None, **fields: Any) -> ServiceError:
        """The error."""
        with pytest.raises(ServiceError) as caught:
            await self.ask(prompt, **fields)
        assert self.admission.active == 0
        return caught.value


async def test_the_rewritten_turn_is_answered_in_place_of_the_clients_and_usage_counts_both() -> None:
    scene = Scene()
    answered = await scene.ask(wishes=Wishes(temperature=0.5, seed=3))
    assert scene.asked == [FIRST, f"{SYSTEM}{EARLIER}HelloWhat is 2 + 2?"]
    assert answered.texts == ["4"]
    assert answered.usage == Usage(len(scene.asked[0]) + len(scene.asked[1]), len(" What is 2 + 2? ") + 1 + 2, 4)
    assert answered.cache == "bypass"
    first, second = (attempt.request for attempt in scene.replica.attempts)
    assert (first.sampling.temperature, first.stopping.max_tokens) == (0, 1024)
    assert (second.sampling.temperature, second.sampling.seed) == (0.5, 3)


async def test_a_client_can_see_what_was_answered() -> None:
    scene = Scene()
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(call(chat(), prompt_field="messages", system2_attention=True), ticket) as generation:
            assert rewritten_turn(generation) is None
            while not generation.finished:
                await generation.next()
            assert rewritten_turn(generation) == "What is 2 + 2?"
            assert bytes(generation.prompt_token_ids(0)).decode() == scene.asked[1]
            assert generation.system_fingerprint == WIDE.system_fingerprint
            assert generation.timeline().queue_ms == 6


async def test_only_the_answer_is_streamed_and_a_stream_has_something_to_say_while_it_waits() -> None:
    scene = Scene(FakeReplica("one"), keep_alive_s=0.001)
    one = scene.replica
    with scene.admission.enter("acme") as ticket:
        asked = call(chat(), prompt_field="messages", system2_attention=True, stream=True)
        async with scene.pipeline.open(asked, ticket) as generation:
            assert await generation.next() == []
            replica().play(one.attempts[0])
            reading = asyncio.create_task(_texts(generation))
            await until(lambda: len(one.attempts) == 2)
            one.attempts[1].answer.push(0, [52], "4", now=0.0)
            await until(lambda: not generation.finished)
            one.attempts[1].answer.push(1, [50], "2", "stop", now=0.0)
            assert "".join(await reading) == "42"
    assert scene.count("triserve_time_to_first_token_seconds_count") == 1
    assert scene.count("triserve_answers_total", finish_reason="stop") == 1


async def _texts(generation: Any) -> list[str]:
    texts = []
    while not generation.finished:
        texts += [piece.delta.text for piece in await generation.next()]
    return texts


async def test_what_the_model_thinks_of_the_turn_is_no_part_of_it() -> None:
    scene = Scene(replica("<think>They flatter.</think>What is 2 + 2?", "4"), model=THINKING)
    await scene.ask(reading=AnswerReading())
    assert scene.asked[1].endswith("HelloWhat is 2 + 2?")


async def test_arguments_of_the_template_go_to_both_steps_and_other_wishes_to_the_second() -> None:
    scene = Scene()
    argument = tokenizer_pb2.TemplateArgument(name="enable_thinking", bool_value=False)
    wishes = Wishes(grammar=common_pb2.Grammar(regex="4"), stop_strings=("x",), max_tokens=5)
    await scene.ask(chat(template_arguments=[argument]), wishes=wishes, n=2)
    assert [list(one.chat.template_arguments) for one in scene.stages.encoded] == [[argument]] * 3
    assert not scene.replica.attempts[0].request.sampling.HasField("grammar")
    assert [one.request.sampling.grammar.regex for one in scene.replica.attempts[1:]] == ["4", "4"]
    assert [one.request.stopping.max_tokens for one in scene.replica.attempts] == [1024, 5, 5]


async def test_answers_to_it_may_be_searched_for() -> None:
    scene = Scene()
    answered = await scene.ask(search=BestOf(width=3))
    assert answered.texts == ["4"] and len(scene.asked) == 4
    assert scene.count("triserve_search_requests_total", kind="best_of") == 3


async def test_the_cache_takes_no_part() -> None:
    scene = Scene()
    for _ in range(2):
        await scene.ask(wishes=Wishes(temperature=0))
    assert len(scene.asked) == 4
    assert isinstance(await scene.refused(cache=CachePolicy(only=True)), NotCached)
    assert len(scene.asked) == 4


@pytest.mark.parametrize(("one", "words"), [(replica("  "), "is empty"), (replica("What", finish="length"), "did not end within 5 tokens")])
async def test_a_turn_that_is_empty_or_cut_is_not_answered(one: FakeReplica, words: str) -> None:
    error = await Scene(one).refused()
    assert isinstance(error, InvalidRequest) and error.field == "system2_attention" and words in error.message
    assert len(one.attempts) == 1


async def test_the_turn_has_no_more_tokens_than_the_operator_allows_and_than_fit() -> None:
    scene = Scene(max_rewrite_tokens=16)
    await scene.ask()
    assert scene.replica.attempts[0].request.stopping.max_tokens == 16
    tight = Scene(model=replace(MODEL, max_model_len_tokens=len(FIRST) + 20))
    await tight.ask()
    assert tight.replica.attempts[0].request.stopping.max_tokens == 20
    full = Scene(model=replace(MODEL, max_model_len_tokens=len(FIRST)))
    assert isinstance(await full.refused(), PromptTooLong)


async def test_a_wrong_field_is_refused_before_anything_is_rewritten() -> None:
    scene = Scene(places=2)
    assert (await scene.refused(wishes=Wishes(temperature=-1.0))).field == "temperature"
    assert isinstance(await scene.refused(n=3), Overloaded)
    assert not scene.asked


@pytest.mark.parametrize(
    "prompt",
    [
        (5, 6),
        tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text="a")),
        chat(role="assistant"),
        chat(role="tool"),
        chat(" \n"),
        chat(tools=[tokenizer_pb2.FunctionTool(name="f")]),
    ],
    ids=["ids", "a text", "an assistant's turn", "a result of a tool", "a turn of nothing", "tools"],
)
async def test_where_there_is_no_turn_to_rewrite_it_is_refused_by_name(prompt: Any) -> None:
    scene = Scene()
    error = await scene.refused(prompt)
    assert isinstance(error, InvalidRequest) and error.field == "system2_attention"
    assert error.message.startswith("system2_attention is not supported")
    assert not scene.asked


async def test_a_failure_of_either_step_is_the_clients() -> None:
    lost = FakeReplica("one", play=lambda attempt: attempt.answer.fail(Unavailable("the compute process was lost")))
    scene = Scene(lost, retry_wait_s=0.0)
    assert isinstance(await scene.refused(), Unavailable)


@pytest.mark.parametrize("steps", [1, 2])
async def test_a_client_that_leaves_aborts_the_step_under_way(steps: int) -> None:
    scene = Scene(FakeReplica("one"))
    asking = asyncio.create_task(scene.ask())
    await until(lambda: scene.replica.attempts)
    if steps == 2:
        replica().play(scene.replica.attempts[0])
        await until(lambda: len(scene.replica.attempts) == 2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: scene.replica.attempts[-1].cancelled)
    assert scene.admission.active == 0
