"""The real `openai` client against a gateway whose stages are fakes over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.fakes.fake_compute import FakeCompute, Say
from tests.fakes.fake_tokenizer import BOS, EOS, FakeTokenizer
from tests.fakes.gateway_fleet import GatewayFleet, eventually, running_fleet
from triserve.rpc.errors import DeadlineExceeded, Internal, Overloaded, ServiceError, Unavailable
from triserve.v1 import common_pb2, compute_pb2

HELLO: Any = [{"role": "user", "content": "Hello"}]
ECHO = "user: Hello\nassistant: "


@pytest.fixture
async def fleet() -> AsyncIterator[GatewayFleet]:
    async with running_fleet() as fleet:
        yield fleet


@pytest.fixture
async def client(fleet: GatewayFleet) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, timeout=20) as client:
        yield client


async def test_a_chat_comes_whole(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "tiny"
    assert answer.choices[0].message.content == ECHO
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ECHO), len(ECHO) + 1)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert fleet.active == 0


async def test_a_chat_streams_the_same_answer(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ECHO
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 2 * len(ECHO) + 1
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_delta_is_delivered_before_the_next_is_made(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(1)
    stream = await client.completions.create(model="tiny", prompt="abc", stream=True)
    chunks = aiter(stream)
    texts = [(await anext(chunks)).choices[0].text]
    for _ in range(2):
        fleet.compute.let_through(1)
        texts.append((await anext(chunks)).choices[0].text)
    assert texts == ["a", "b", "c"]
    fleet.compute.flowing.set()
    assert [chunk.choices[0].finish_reason async for chunk in chunks] == ["stop"]


async def test_continuous_usage_grows_with_every_chunk(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    fleet.compute.flowing.clear()
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    fleet.compute.let_through(1)
    chunks = aiter(await client.completions.create(model="tiny", prompt="abc", stream=True, stream_options=options))
    counts = []
    async for chunk in chunks:
        assert chunk.usage is not None
        counts.append(chunk.usage.completion_tokens)
        fleet.compute.let_through(1)
    assert counts == [1, 2, 3, 4, 4]


async def test_prompts_of_every_kind_are_answered_in_order(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    one = await client.completions.create(model="tiny", prompt="ab")
    many = await client.completions.create(model="tiny", prompt=["ab", "cd"])
    ids = await client.completions.create(model="tiny", prompt=[97, 98])
    lists = await client.completions.create(model="tiny", prompt=[[97], [98, 99]])
    assert [choice.text for choice in one.choices] == ["ab"]
    assert [(choice.index, choice.text) for choice in many.choices] == [(0, "ab"), (1, "cd")]
    assert [choice.text for choice in ids.choices] == ["ab"]
    assert [choice.text for choice in lists.choices] == ["a", "bc"]
    assert [list(request.token_ids) for request in fleet.compute.submitted[3:]] == [[97, 98], [97], [98, 99]]
    assert many.usage is not None
    assert many.usage.prompt_tokens == 6


async def test_a_completion_has_16_tokens_unless_more_are_asked_for_and_a_chat_as_many_as_fit(
    client: AsyncOpenAI, fleet: GatewayFleet
) -> None:
    await client.completions.create(model="tiny", prompt="ab")
    await client.chat.completions.create(model="tiny", messages=HELLO)
    assert [request.stopping.max_tokens for request in fleet.compute.submitted] == [16, 4096 - len(ECHO)]


async def test_n_choices_have_seeds_of_their_own_and_the_first_has_the_requests(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {ECHO}
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ECHO)
    assert answer.usage.completion_tokens == 3 * (len(ECHO) + 1)
    seeds = [request.sampling.seed for request in fleet.compute.submitted]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7, stream=False)
    assert [request.sampling.seed for request in fleet.compute.submitted[3:]] == seeds


async def test_n_choices_stream_side_by_side(client: AsyncOpenAI) -> None:
    texts = ["", ""]
    reasons: list[str | None] = [None, None]
    async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [ECHO, ECHO]
    assert reasons == ["stop", "stop"]


async def test_requests_without_a_seed_get_different_ones(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    await asyncio.gather(*(client.completions.create(model="tiny", prompt="a") for _ in range(4)))
    assert len({request.sampling.seed for request in fleet.compute.submitted}) == 4


async def test_every_parameter_reaches_compute(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief"}, *HELLO],
        temperature=0.5,
        top_p=0.25,
        presence_penalty=1.5,
        frequency_penalty=-1.5,
        logit_bias={"65": 2, "66": -3},
        max_completion_tokens=9,
        stop=["x", "yz"],
        seed=-1,
        logprobs=True,
        extra_body={
            "top_k": 5,
            "min_p": 0.125,
            "repetition_penalty": 1.25,
            "min_tokens": 2,
            "stop_token_ids": [10],
            "prompt_logprobs": 3,
            "logprob_token_ids": [9, 4],
        },
    )
    (request,) = fleet.compute.submitted
    assert request.sampling == common_pb2.SamplingParams(
        temperature=0.5,
        top_k=5,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.25,
        presence_penalty=1.5,
        frequency_penalty=-1.5,
        logit_bias_ids=[65, 66],
        logit_bias_values=[2, -3],
        seed=2**64 - 1,
        top_logprobs=0,
        prompt_logprobs=3,
        logprob_token_ids=[9, 4],
    )
    assert request.stopping == common_pb2.StoppingParams(max_tokens=9, min_tokens=2, stop_token_ids=[10, EOS], stop_strings=["x", "yz"])
    assert request.system_tokens == len("system: Be brief\n")
    assert 0 < request.deadline_ms <= 600_000
    assert request.tenant == "default"


async def test_ignored_end_of_text_is_no_stop_id(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    answer = await client.completions.create(model="tiny", prompt="ab", max_tokens=7, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text == "abababa"
    assert not fleet.compute.submitted[0].stopping.stop_token_ids


async def test_the_authors_defaults_are_used_where_the_client_says_nothing() -> None:
    tokenizer = FakeTokenizer(default_temperature=0.25, default_top_k=20, default_top_p=0.75)
    async with running_fleet(tokenizers=[tokenizer]) as fleet, AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="x") as client:
        await client.completions.create(model="tiny", prompt="a")
        await client.completions.create(model="tiny", prompt="a", temperature=1, top_p=1, extra_body={"top_k": 0})
        first, second = (request.sampling for request in fleet.compute.submitted)
        assert (first.temperature, first.top_k, first.top_p) == (0.25, 20, 0.75)
        assert second.temperature == 1
        assert not second.HasField("top_k")
        assert not second.HasField("top_p")


async def test_log_probabilities_of_a_chat(client: AsyncOpenAI) -> None:
    request: Any = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 3}
    whole = (await client.chat.completions.create(**request)).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert [token.token for token in whole.content] == ["u", "s", "e"]
    assert [top.token for top in whole.content[0].top_logprobs] == ["u", "v"]
    assert whole.content[0].bytes == [ord("u")]
    assert whole.content[0].logprob == -0.5
    streamed: list[Any] = []
    async for chunk in await client.chat.completions.create(**request, stream=True):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == whole.content


async def test_log_probabilities_of_a_completion(client: AsyncOpenAI) -> None:
    whole = (await client.completions.create(model="tiny", prompt="abc", logprobs=2, max_tokens=3)).choices[0].logprobs
    assert whole is not None
    assert whole.tokens == ["a", "b", "c"]
    assert whole.token_logprobs == [-0.5] * 3
    assert whole.top_logprobs is not None
    assert whole.top_logprobs[0] == {"a": -0.5, "b": -1.5}
    assert whole.text_offset == [0, 1, 2]
    offsets: list[int] = []
    async for chunk in await client.completions.create(model="tiny", prompt="abc", logprobs=0, max_tokens=3, stream=True):
        assert chunk.choices[0].logprobs is not None
        assert chunk.choices[0].logprobs.top_logprobs == [{token: -0.5} for token in chunk.choices[0].logprobs.tokens or []]
        offsets += chunk.choices[0].logprobs.text_offset or []
    assert offsets == [0, 1, 2]


async def test_token_ids_are_returned_where_asked_for(client: AsyncOpenAI) -> None:
    extra = {"return_token_ids": True}
    whole: Any = await client.completions.create(model="tiny", prompt="abc", extra_body=extra)
    assert whole.choices[0].token_ids == [97, 98, 99, EOS]
    ids: list[int] = []
    chunk: Any
    async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, stream=True, extra_body=extra):
        ids += getattr(chunk.choices[0], "token_ids", None) or []
    assert ids == [*ECHO.encode(), EOS]
    plain: Any = await client.completions.create(model="tiny", prompt="abc")
    assert plain.choices[0].token_ids is None


async def test_a_timeline_is_returned_where_asked_for(client: AsyncOpenAI) -> None:
    answer: Any = await client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"return_timeline": True})
    timeline = answer.triserve
    assert (timeline["tokenize_ms"], timeline["queue_ms"], timeline["prefill_ms"]) == (1.5, 3, 7)
    assert timeline["decode_ms"] >= 0
    plain: Any = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert not hasattr(plain, "triserve")


async def test_text_parts_are_joined_by_line_ends(client: AsyncOpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    answer = await client.chat.completions.create(model="tiny", messages=parts)
    assert answer.choices[0].message.content == "user: one\ntwo\nassistant: "


async def test_an_answer_can_be_sent_back_as_the_client_library_dumps_it(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    history: Any = [*HELLO, answer.choices[0].message.model_dump(), {"role": "user", "content": "And?"}]
    again = await client.chat.completions.create(model="tiny", messages=history)
    assert again.choices[0].finish_reason == "stop"


async def test_text_that_needs_escaping_arrives_as_it_is(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    text = 'quote " backslash \\ newline \n tab \t é 漢字 😀 </script>\u2028 \x00'
    fleet.compute.script = lambda request: [Say(text, [1], common_pb2.FINISH_REASON_STOP)]
    whole = await client.completions.create(model="tiny", prompt="a")
    assert whole.choices[0].text == text
    chunks = [chunk async for chunk in await client.completions.create(model="tiny", prompt="a", stream=True)]
    assert chunks[0].choices[0].text == text


async def test_models_are_listed_and_found_by_name_and_alias() -> None:
    async with (
        running_fleet(model_name="org/tiny", model_aliases="gpt-4o") as fleet,
        AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="x") as client,
    ):
        names = [model.id for model in (await client.models.list()).data]
        assert names == ["org/tiny", "gpt-4o"]
        model: Any = await client.models.retrieve("org/tiny")
        assert (model.id, model.max_model_len, model.vocab_size) == ("org/tiny", 4096, 258)
        answer = await client.chat.completions.create(model="gpt-4o", messages=HELLO)
        assert answer.model == "org/tiny"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("gpt-17")
        assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (Overloaded("too many wait"), openai.RateLimitError, "overloaded"),
        (Unavailable("the sampler was lost"), openai.InternalServerError, "unavailable"),
        (DeadlineExceeded("too late"), openai.InternalServerError, "deadline_exceeded"),
        (Internal("internal error"), openai.InternalServerError, "internal_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_the_clients_exception(
    fleet: GatewayFleet, client: AsyncOpenAI, error: ServiceError, expected: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    fleet.compute.script = lambda request: [error]
    with pytest.raises(expected) as caught:
        await client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
    assert caught.value.code == code
    assert caught.value.status_code == error.http_status
    assert ("retry-after" in caught.value.response.headers) == (error.http_status in (429, 503))
    await eventually(lambda: fleet.active == 0)


async def test_a_failure_after_the_first_token_is_an_error_event_without_done(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    fleet.compute.script = lambda request: [Say("begun", [1]), Unavailable("the sampler was lost")]
    chunks = []
    with pytest.raises(openai.APIError) as caught:
        async for chunk in await client.chat.completions.create(model="tiny", messages=HELLO, stream=True):
            chunks.append(chunk)
    assert caught.value.code == "unavailable"
    assert chunks[1].choices[0].delta.content == "begun"


async def test_a_wrong_key_is_an_authentication_error(tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("acme 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n")
    async with running_fleet(api_keys_file=keys) as fleet:
        async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(model="tiny", messages=HELLO)
        assert not fleet.compute.submitted
        async with AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="secret", max_retries=0) as client:
            await client.chat.completions.create(model="tiny", messages=HELLO)
        assert fleet.compute.submitted[0].tenant == "acme"


async def test_closing_a_stream_cancels_the_request_in_compute(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    fleet.compute.flowing.clear()
    fleet.compute.let_through(2)
    stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await eventually(lambda: fleet.compute.cancelled == [fleet.compute.submitted[0].request], "compute was told")
    assert fleet.active == 0


async def test_tokens_of_a_merged_backlog_are_all_there(fleet: GatewayFleet, client: AsyncOpenAI) -> None:
    def many(request: compute_pb2.SubmitRequest) -> list[Say]:
        says = [Say(f"{n} ", [n % 256]) for n in range(2000)]
        return [*says, Say("", [EOS], common_pb2.FINISH_REASON_STOP)]

    fleet.compute.script = many
    text = ""
    stream = await client.completions.create(model="tiny", prompt="a", max_tokens=3000, stream=True)
    async for chunk in stream:
        text += chunk.choices[0].text
    assert text == "".join(f"{n} " for n in range(2000))


async def test_a_text_prompt_gets_the_tokenizers_own_special_tokens_unless_told_otherwise(client: AsyncOpenAI, fleet: GatewayFleet) -> None:
    await client.completions.create(model="tiny", prompt="a")
    await client.completions.create(model="tiny", prompt="a", extra_body={"add_special_tokens": False})
    assert [list(request.token_ids) for request in fleet.compute.submitted] == [[BOS, 97], [97]]


async def test_replicas_share_the_load() -> None:
    computes = [FakeCompute(), FakeCompute()]
    async with running_fleet(computes=computes) as fleet, AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="x") as client:
        for compute in computes:
            compute.flowing.clear()
        requests = [asyncio.create_task(client.completions.create(model="tiny", prompt="a")) for _ in range(6)]
        await eventually(lambda: sum(len(compute.submitted) for compute in computes) == 6)
        assert [len(compute.submitted) for compute in computes] == [3, 3]
        for compute in computes:
            compute.flowing.set()
        await asyncio.gather(*requests)
