"""A request from its admission to its end, on stages that are plain objects: order, refusals, seeds, the cache and what is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gateway.flow.admission import Admission
from gateway.flow.answer_cache import AnswerCache
from gateway.flow.call import CachePolicy, Call, Prompt, Wishes
from gateway.flow.generations.generation import Usage
from gateway.flow.generations.live_generation import LiveGeneration
from gateway.flow.limits import Limits
from gateway.flow.pipeline import Pipeline, remaining_ms
from gateway.flow.preparation import in_clients_words
from gateway.flow.served_model import ServedModel, ServedNames
from gateway.metrics import Metrics
from prompt_cache import CacheConfig, PromptCache
from tests.fakes.fake_stages import MODEL, Clock, FakeAttempt, FakeReplica, FakeStages, says, until
from triserve.rpc.errors import DeadlineExceeded, Internal, InvalidRequest, NotFound, Overloaded, PromptTooLong, ServiceError, Unavailable
from triserve.rpc.sampling import choice_seed
from triserve.v1 import tokenizer_pb2

HI = says(("H", [72]), ("i", [105, 7]))


def text(words: str) -> Prompt:
    return tokenizer_pb2.EncodeRequest(text=tokenizer_pb2.TextInput(text=words))


def chat(words: str) -> Prompt:
    return tokenizer_pb2.EncodeRequest(chat=tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage(role="user", content=words)]))


class Scene:
    """A pipeline on fake stages."""

    def __init__(
        self, *, replica: FakeReplica | None = None, model: ServedModel = MODEL, places: int = 8, cached: bool = False, **limits: Any
    ) -> None:
        self.replica = replica or FakeReplica("one", play=HI)
        self.stages = FakeStages(self.replica, model=model)
        self.admission = Admission(places)
        self.metrics = Metrics()
        self.clock = Clock()
        cache = AnswerCache(PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef")), None, "tiny") if cached else None
        self.pipeline = Pipeline(
            fleet=self.stages, cache=cache, names=ServedNames(name="tiny"), limits=Limits(**limits), metrics=self.metrics, clock=self.clock
        )

    async def answer(self, *prompts: Prompt, **fields: Any) -> tuple[str, Usage, str]:
        """All that is said in answer, the usage, and what the cache did."""
        said = ""
        with self.admission.enter("acme") as ticket:
            async with self.pipeline.open(call(*prompts, **fields), ticket) as generation:
                while not generation.finished:
                    said += "".join(piece.delta.text for piece in await generation.next())
                return said, generation.usage(), generation.cache.status

    async def refusal(self, *prompts: Prompt, **fields: Any) -> ServiceError:
        """The error instead of an answer. Nothing is left of the request."""
        with pytest.raises(ServiceError) as caught:
            await self.answer(*prompts, **fields)
        assert self.admission.active == 0
        return caught.value

    def count(self, name: str, **labels: str) -> float:
        """A metric's value."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def call(*prompts: Prompt, **fields: Any) -> Call:
    known = {"request_id": "cmpl-1", "tenant": "acme", "route": "completions", "model": "", "prompts": prompts, "prompt_field": "prompt"}
    return Call(**{**known, **fields})


async def test_a_text_is_encoded_resolved_submitted_and_counted() -> None:
    scene = Scene()
    assert await scene.answer(text("abc"), wishes=Wishes(max_tokens=5)) == ("Hi", Usage(3, 3, 2), "bypass")
    assert scene.stages.encoded[0].max_tokens == MODEL.max_model_len_tokens - 1
    request = scene.replica.attempts[0].request
    assert (list(request.token_ids), request.system_tokens, request.stopping.max_tokens) == ([97, 98, 99], 1, 5)
    assert list(request.stopping.stop_token_ids) == [7]
    assert [encode.max_tokens for encode in scene.stages.encoded] == [99]
    assert 500_000 < request.deadline_ms <= 600_000
    assert scene.count("triserve_requests_total", route="completions", outcome="ok") == 1
    assert scene.count("triserve_prompt_tokens_total") == 3
    assert scene.count("triserve_completion_tokens_total") == 3
    assert scene.count("triserve_answers_total", finish_reason="stop") == 1
    assert scene.count("triserve_tokenize_seconds_sum") == 0.0015
    assert (scene.count("triserve_queue_seconds_sum"), scene.count("triserve_prefill_seconds_sum")) == (0.003, 0.007)


async def test_times_are_those_of_the_clock() -> None:
    scene = Scene()
    scene.clock.now = 1.5

    def slowly(attempt: FakeAttempt) -> None:
        scene.clock.now += 2
        says(("H", [72]), ("i", [105, 7]), at=scene.clock)(attempt)
        scene.clock.now += 3

    scene.replica.play = slowly
    await scene.answer(text("abc"))
    assert scene.count("triserve_request_duration_seconds_sum") == 5
    assert scene.count("triserve_time_to_first_token_seconds_sum") == 2


async def test_ids_go_to_compute_as_they_are() -> None:
    scene = Scene()
    await scene.answer((5, 6), (7,), n=2)
    assert not scene.stages.encoded
    assert [list(attempt.request.token_ids) for attempt in scene.replica.attempts] == [[5, 6], [5, 6], [7], [7]]


async def test_of_several_prompts_that_are_wrong_the_first_is_named() -> None:
    assert "token id 500," in (await Scene().refusal((500,), (600,), (700,))).message


async def test_ids_have_no_system_prompt_and_cost_no_tokenizer() -> None:
    scene = Scene()
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(call((5, 6)), ticket) as generation:
            assert generation.timeline().tokenize_ms == 0
    assert scene.replica.attempts[0].request.system_tokens == 0
    assert scene.count("triserve_tokenize_seconds_count") == 0


async def test_seeds_of_the_gateway_s_own_have_all_their_bits() -> None:
    scene = Scene(places=64)
    await scene.answer(*[(5,)] * 64)
    seeds = [attempt.request.sampling.seed for attempt in scene.replica.attempts]
    assert max(seeds) >= 2**63
    assert any(seed % 2 for seed in seeds)


@pytest.mark.parametrize(("deadline_s", "now_s", "left_ms"), [(10.0, 7.5, 2500), (7.5, 7.5, 1), (5.0, 7.5, 1), (7.5019, 7.5, 2)])
def test_the_time_that_is_left_is_in_milliseconds_and_never_none_at_all(deadline_s: float, now_s: float, left_ms: int) -> None:
    assert remaining_ms(deadline_s, now_s) == left_ms


async def test_what_no_replica_takes_in_full_is_aborted_on_those_that_took_a_part() -> None:
    replica = FakeReplica("one")
    replica.play = lambda attempt: setattr(replica, "ready", False)
    scene = Scene(replica=replica)
    assert isinstance(await scene.refusal((5,), n=2), Unavailable)
    assert [attempt.cancelled for attempt in replica.attempts] == [True]


@pytest.mark.parametrize("error", [RuntimeError("a fault"), TimeoutError("somebody else's")])
async def test_an_error_that_is_none_of_a_request_s_is_passed_on_and_counted_as_internal(error: Exception) -> None:
    scene = Scene(replica=FakeReplica("one"))
    with scene.admission.enter("acme") as ticket, pytest.raises(type(error)) as caught:
        async with scene.pipeline.open(call((5,)), ticket):
            raise error
    assert caught.value is error
    assert scene.count("triserve_requests_total", route="completions", outcome="internal") == 1
    assert scene.replica.attempts[0].cancelled


@pytest.mark.parametrize(
    ("cached", "policy", "kept"), [(False, CachePolicy(), False), (True, CachePolicy(write=False), False), (True, CachePolicy(), True)]
)
async def test_deltas_are_remembered_for_the_cache_alone(cached: bool, policy: CachePolicy, kept: bool) -> None:
    scene = Scene(replica=FakeReplica("one"), cached=cached)
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(call((5,), wishes=Wishes(temperature=0.0), cache=policy), ticket) as generation:
            assert isinstance(generation, LiveGeneration)
            assert [answer.tee is not None for answer in generation.answers] == [kept]


async def test_a_clients_seed_gives_each_prompt_the_answers_it_would_have_alone() -> None:
    scene = Scene()
    await scene.answer((5,), (5,), n=2, wishes=Wishes(seed=9))
    assert [attempt.request.sampling.seed for attempt in scene.replica.attempts] == [9, choice_seed(9, 1)] * 2


async def test_without_a_seed_equal_prompts_have_seeds_of_their_own() -> None:
    scene = Scene()
    await scene.answer((5,), (5,), (5,), n=2)
    assert len({attempt.request.sampling.seed for attempt in scene.replica.attempts}) == 6


REFUSED: list[tuple[str, dict[str, Any], type[ServiceError], str]] = [
    ("too many answers", {"n": 99}, InvalidRequest, "n"),
    ("another model", {"model": "gpt"}, NotFound, "model"),
    ("a priority nobody serves", {"priority": 1}, InvalidRequest, "priority"),
    ("a temperature out of range", {"wishes": Wishes(temperature=-1.0)}, InvalidRequest, "temperature"),
    ("no room for the answer", {"wishes": Wishes(max_tokens=98)}, PromptTooLong, "max_tokens"),
]


@pytest.mark.parametrize(("fields", "kind", "field"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
async def test_a_refused_call_reaches_no_replica_and_is_counted_as_what_it_is(
    fields: dict[str, Any], kind: type[ServiceError], field: str
) -> None:
    scene = Scene()
    error = await scene.refusal(text("abc"), **fields)
    assert (type(error).__mro__[:-1].count(kind), error.field) == (1, field)
    assert not scene.replica.attempts
    assert scene.count("triserve_requests_total", route="completions", outcome=error.reason.lower()) == 1


async def test_shape_and_places_come_before_any_work() -> None:
    scene = Scene(places=4)
    with scene.admission.enter("other"):
        error = None
        with scene.admission.enter("acme") as ticket:
            with pytest.raises(Overloaded) as caught:
                async with scene.pipeline.open(call(text("abc"), n=4), ticket):
                    pass
            error = caught.value
        assert error.reason == "OVERLOADED"
    assert not scene.stages.encoded


async def test_a_chat_needs_a_template() -> None:
    scene = Scene(model=replace(MODEL, has_chat_template=False))
    assert "no chat template" in (await scene.refusal(chat("abc"), prompt_field="messages")).message
    assert not scene.stages.encoded


async def test_a_text_needs_no_template() -> None:
    assert (await Scene(model=replace(MODEL, has_chat_template=False)).answer(text("abc")))[0] == "Hi"


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (
            PromptTooLong.of(got=200, limit=99, field="messages"),
            "This model's maximum context length is 100 tokens. However, prompt has 200 ",
        ),
        (InvalidRequest("messages[0].role is wrong", field="messages[0].role"), "messages[0].role is wrong"),
    ],
)
async def test_what_the_tokenizer_refuses_is_refused_in_the_clients_words(refusal: InvalidRequest, message: str) -> None:
    scene = Scene()
    scene.stages.refusal = refusal
    error = await scene.refusal(text("abc"))
    assert type(error) is type(refusal)
    assert error.message.startswith(message)
    assert not scene.replica.attempts


async def test_a_prompt_without_tokens_is_refused() -> None:
    assert (await Scene().refusal(text(""))).message == "prompt has no tokens"


async def test_without_a_replica_the_call_is_refused_before_it_is_encoded() -> None:
    scene = Scene(replica=FakeReplica("one", ready=False))
    assert isinstance(await scene.refusal(text("abc")), Unavailable)
    assert not scene.stages.encoded


async def test_a_fault_of_ours_is_counted_as_internal() -> None:
    scene = Scene(replica=FakeReplica("one", play=lambda attempt: attempt.answer.fail(Internal("internal error"))))
    await scene.refusal(text("abc"))
    assert scene.count("triserve_requests_total", route="completions", outcome="internal") == 1


async def test_a_call_out_of_time_ends_and_its_attempts_are_aborted() -> None:
    scene = Scene(replica=FakeReplica("one"))
    error = await scene.refusal(text("abc"), timeout_s=0.001)
    assert isinstance(error, DeadlineExceeded)
    assert error.message == "the request took longer than 0.001 s"
    assert scene.replica.attempts[0].cancelled


async def test_a_client_cannot_give_a_call_more_time_than_the_gateway_does() -> None:
    scene = Scene(replica=FakeReplica("one"), request_timeout_s=0.001)
    assert (await scene.refusal(text("abc"), timeout_s=99)).message == "the request took longer than 0.001 s"


async def test_aborting_all_ends_each_call_with_the_error_given() -> None:
    scene = Scene(replica=FakeReplica("one"))
    asking = asyncio.create_task(scene.refusal(text("abc")))
    await until(lambda: scene.replica.attempts)
    leaving = Unavailable("leaving")
    scene.pipeline.abort_all(leaving)
    assert await asking is leaving
    assert scene.replica.attempts[0].cancelled


async def test_leaving_early_aborts_and_is_counted_as_cancelled() -> None:
    scene = Scene(replica=FakeReplica("one"))
    asking = asyncio.create_task(scene.answer(text("abc")))
    await until(lambda: scene.replica.attempts)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert scene.replica.attempts[0].cancelled
    assert scene.admission.active == 0
    assert scene.count("triserve_requests_total", route="completions", outcome="cancelled") == 1


async def test_a_determined_answer_is_kept_and_replayed_without_a_replica() -> None:
    scene = Scene(cached=True)
    greedy = Wishes(temperature=0.0)
    assert await scene.answer(text("abc"), wishes=greedy) == ("Hi", Usage(3, 3, 2), "miss")
    assert await scene.answer(text("abc"), wishes=greedy) == ("Hi", Usage(3, 3, 3), "hit-exact")
    assert len(scene.replica.attempts) == 1
    assert scene.count("triserve_cache_lookups_total", result="hit-exact") == 1


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"wishes": Wishes()}, "bypass"),
        ({"wishes": Wishes(temperature=0.0, top_logprobs=1)}, "bypass"),
        ({"wishes": Wishes(temperature=0.0, ignore_eos=True)}, "bypass"),
        ({"wishes": Wishes(temperature=0.0), "n": 2}, "bypass"),
        ({"wishes": Wishes(temperature=0.0), "cache": CachePolicy(read=False, write=False)}, "bypass"),
        ({"wishes": Wishes(temperature=0.0), "cache": CachePolicy(read=False)}, "bypass"),
        ({"wishes": Wishes(temperature=0.0), "cache": CachePolicy(write=False)}, "miss"),
    ],
)
async def test_what_is_not_to_be_given_or_kept_is_made_anew(fields: dict[str, Any], status: str) -> None:
    scene = Scene(cached=True)
    assert [(await scene.answer(text("abc"), **fields))[2] for _ in range(2)] == [status] * 2


async def test_a_fresh_answer_is_kept_for_others() -> None:
    scene = Scene(cached=True)
    greedy = Wishes(temperature=0.0)
    await scene.answer(text("abc"), wishes=greedy, cache=CachePolicy(read=False))
    assert (await scene.answer(text("abc"), wishes=greedy))[2] == "hit-exact"


async def test_an_answer_that_was_made_to_its_end_is_kept_however_much_its_client_read() -> None:
    scene = Scene(cached=True)
    greedy = call(text("abc"), wishes=Wishes(temperature=0.0))
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(greedy, ticket) as generation:
            assert isinstance(generation, LiveGeneration)
    assert (await scene.answer(text("abc"), wishes=Wishes(temperature=0.0)))[2] == "hit-exact"


async def test_an_answer_whose_client_left_before_its_end_is_not_kept() -> None:
    scene = Scene(replica=FakeReplica("one"), cached=True)
    greedy = call(text("abc"), wishes=Wishes(temperature=0.0))
    with scene.admission.enter("acme") as ticket:
        async with scene.pipeline.open(greedy, ticket):
            scene.replica.attempts[0].answer.push(0, [1], "a", now=1.0)
    scene.replica.play = HI
    assert (await scene.answer(text("abc"), wishes=Wishes(temperature=0.0)))[2] == "miss"


@pytest.mark.parametrize(
    ("error", "field", "message"),
    [
        (PromptTooLong.of(got=9, limit=5, field="prompt"), "messages", "messages has 9 tokens, the limit is 5"),
        (InvalidRequest("token_ids has 9 ids", field="token_ids"), "tokens", "tokens has 9 ids"),
        (InvalidRequest("template_arguments has 'x'", field="template_arguments"), "chat_template_kwargs", "chat_template_kwargs has 'x'"),
        (InvalidRequest("messages[0].role is wrong", field="messages[0].role"), "messages[0].role", "messages[0].role is wrong"),
        (InvalidRequest("something is wrong"), "messages", "something is wrong"),
    ],
)
def test_a_tokenizers_refusal_is_told_in_the_clients_words(error: InvalidRequest, field: str, message: str) -> None:
    told = in_clients_words(error, "messages")
    assert (type(told), told.field, told.message) == (type(error), field, message)
