"""A router made for vLLM drives a replica by its generated stubs: ids in, ids out, the same as gateways of the replica's own get."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from tests.fakes.certificates import Authority, client_end, server_end, settings_of
from tests.fakes.compute_replica import TIMEOUT_S, WIDTH, Replica, until
from triserve.rpc.channel import is_ready, open_channel
from triserve.rpc.sampling import choice_seed
from triserve.rpc.tls.ends import ClientTls

REASON = "smg-grpc-proto is not installed"
vllm: Any = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2", reason=REASON)
vllm_grpc: Any = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2_grpc", reason=REASON)
smg: Any = pytest.importorskip("smg_grpc_proto.generated.common_pb2", reason=REASON)

PROMPT = [1, 2, 3]
END = 7


class Router:
    """Calls a replica as a router does.

    Args:
        port: where the replica speaks vLLM's engine gRPC.
        tls: as of `open_channel`.
    """

    def __init__(self, port: int, tls: ClientTls | None = None) -> None:
        self.channel = open_channel(f"127.0.0.1:{port}", tls)
        self.stub: Any = vllm_grpc.VllmEngineStub(self.channel)

    def call(self, prompt: Sequence[int] = PROMPT, *, request_id: str = "r", stream: bool = False, **params: Any) -> Any:
        """Begins a greedy request, unless `params` say otherwise."""
        request = vllm.GenerateRequest(
            request_id=request_id,
            tokenized=vllm.TokenizedInput(input_ids=prompt, original_text="not read"),
            sampling_params=vllm.SamplingParams(**{"temperature": 0, "max_tokens": 4, **params}),
            stream=stream,
        )
        return self.stub.Generate(request, timeout=TIMEOUT_S)

    async def answer(self, prompt: Sequence[int] = PROMPT, **fields: Any) -> list[Any]:
        """All that a request is answered."""
        return [response async for response in self.call(prompt, **fields)]

    async def whole(self, prompt: Sequence[int] = PROMPT, **fields: Any) -> Any:
        """The one message of a request that is not streamed."""
        (response,) = await self.answer(prompt, **fields)
        return response.complete

    async def refusal(self, call: Any) -> tuple[grpc.StatusCode, str]:
        """How a call fails."""
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            _ = [response async for response in call] if hasattr(call, "__aiter__") else await call
        return raised.value.code(), raised.value.details() or ""


@pytest.fixture
async def router(replica: Replica) -> AsyncIterator[Router]:
    """At a replica that is ready."""
    (replica.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END, 999]}))
    await (await replica.start(vllm_listen="127.0.0.1:0")).ready()
    assert replica.running.vllm_port is not None
    router = Router(replica.running.vllm_port)
    yield router
    await router.channel.close()


def ids_of(chunks: Sequence[Any]) -> list[int]:
    return [token for response in chunks for token in response.chunk.token_ids]


def until_end(tokens: Sequence[int], end: int) -> list[int]:
    return list(tokens[: tokens.index(end) + 1])


async def test_an_answer_is_the_model_s_and_the_same_whole_and_streamed(router: Router, replica: Replica) -> None:
    expected = replica.model.greedy_answer(PROMPT, 6)
    assert END not in expected
    whole = await router.whole(max_tokens=6)
    assert (list(whole.output_ids), whole.finish_reason) == (expected, "length")
    assert (whole.prompt_tokens, whole.completion_tokens, whole.index) == (3, 6, 0)
    *chunks, last = await router.answer(max_tokens=6, stream=True)
    assert ids_of(chunks) == list(last.complete.output_ids) == expected
    assert [response.chunk.completion_tokens for response in chunks] == [len(response.chunk.token_ids) for response in chunks]
    assert last.complete.WhichOneof("matched_stop") is None
    await replica.idle()


async def test_a_cached_prefix_is_told(router: Router) -> None:
    prompt = [*range(1, 10)]
    assert (await router.whole(prompt)).cached_tokens == 0
    *chunks, last = await router.answer(prompt, stream=True)
    assert last.complete.cached_tokens == chunks[0].chunk.cached_tokens == 8


async def test_each_of_several_choices_comes_under_its_index(router: Router, replica: Replica) -> None:
    expected = replica.model.greedy_answer(PROMPT, 4)
    wholes = await router.answer(n=3)
    assert sorted(response.complete.index for response in wholes) == [0, 1, 2]
    assert all(list(response.complete.output_ids) == expected for response in wholes)
    seeds = [opening.sampling.seed for frame in replica.samplers[0].frames for opening in frame.open]
    assert len(set(seeds)) == 3, "without a seed of the caller's, each has its own"
    streamed = await router.answer(n=2, stream=True, seed=-1)
    assert {index: ids_of([one for one in streamed if one.chunk.index == index]) for index in (0, 1)} == {0: expected, 1: expected}
    assert [opening.sampling.seed for frame in replica.samplers[0].frames for opening in frame.open][3:] == [2**64 - 1, choice_seed(-1, 1)]


async def test_the_model_s_own_end_ends_an_answer_without_a_name_and_the_caller_s_with_one(router: Router, replica: Replica) -> None:
    prompt = next([token] for token in range(WIDTH) if END in replica.model.greedy_answer([token], 16)[3:])
    answer = replica.model.greedy_answer(prompt, 16)
    ended = await router.whole(prompt, max_tokens=16)
    assert list(ended.output_ids) == until_end(answer, END)
    assert (ended.finish_reason, ended.WhichOneof("matched_stop")) == ("stop", None)
    assert list((await router.whole(prompt, max_tokens=16, ignore_eos=True)).output_ids) == answer
    stop = answer[2]
    named = await router.whole(prompt, max_tokens=16, stop_token_ids=[stop], ignore_eos=True)
    assert list(named.output_ids) == until_end(answer, stop)
    assert (named.finish_reason, named.matched_token_id) == ("stop", stop)


async def test_the_stop_string_that_came_is_named(router: Router, replica: Replica) -> None:
    # The fake sampler's text of a token is its id in brackets, and it is told when a stop string matches.
    answer = replica.model.greedy_answer(PROMPT, 3)
    replica.samplers[0].finish_after = 3
    whole = await router.whole(max_tokens=16, stop=[f"{answer[2]}>", f"<{answer[2]}>", "none"], ignore_eos=True)
    assert (list(whole.output_ids), whole.finish_reason, whole.matched_stop_str) == (answer, "stop", f"<{answer[2]}>")


async def test_an_aborted_request_says_what_came_and_leaves_nothing(router: Router, replica: Replica) -> None:
    call = router.call(request_id="long", max_tokens=60, ignore_eos=True, stream=True)
    answer = aiter(call)
    first = await anext(answer)
    replica.samplers[0].may_answer.clear()
    await router.stub.Abort(vllm.AbortRequest(request_ids=["other", "long"]))
    replica.samplers[0].may_answer.set()
    rest = [response async for response in answer]
    assert rest[-1].complete.finish_reason == "abort"
    assert ids_of([first, *rest]) == list(rest[-1].complete.output_ids)
    await replica.idle()


async def test_a_caller_that_leaves_ends_its_request(router: Router, replica: Replica) -> None:
    replica.gate.open.clear()
    call = router.call(max_tokens=60, ignore_eos=True, stream=True)
    await until(lambda: bool(replica.running._dispatcher and replica.running._dispatcher.gateways))
    call.cancel()
    replica.gate.open.set()
    await until(lambda: bool(replica.running._dispatcher and not replica.running._dispatcher.gateways))
    await replica.idle()


async def test_a_caller_s_deadline_is_the_request_s(router: Router, replica: Replica) -> None:
    await router.whole()
    request = vllm.GenerateRequest(tokenized=vllm.TokenizedInput(input_ids=PROMPT), sampling_params=vllm.SamplingParams(temperature=0))
    replica.gate.open.clear()
    code, _ = await router.refusal(router.stub.Generate(request, timeout=0.05))
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    replica.gate.open.set()
    await replica.idle()


async def test_without_max_tokens_an_answer_may_fill_the_context_and_more_than_that_is_cut(router: Router) -> None:
    for wanted in ({"max_tokens": None}, {"max_tokens": 1000}):
        whole = await router.whole(ignore_eos=True, **wanted)
        assert (whole.completion_tokens, whole.finish_reason) == (61, "length")


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1, the least is 0"),
        ({"prompt_logprobs": 21}, "prompt_logprobs is 21, the limit is 20"),
        ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens is not supported"),
        ({"structural_tag": "{}"}, "structural_tag is not supported"),
        ({"n": 129}, "n is 129, the limit is 128"),
        ({"logprobs": -1}, "logprobs is -1, the least is 0"),
        ({"logprobs": 21}, "logprobs is 21, the limit is 20"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has id -1, the least is 0"),
        ({"logit_bias": {WIDTH: 1.0}}, f"logit_bias has id {WIDTH}, the limit is {WIDTH - 1}"),
        ({"logit_bias": {1: 101.0}}, "logit_bias is 101, the range is"),
        ({"stop": [""]}, "stop has a string of 0 characters"),
        ({"stop_token_ids": [WIDTH]}, f"stop_token_ids has id {WIDTH}"),
        ({"temperature": -1}, "temperature is -1, the range is"),
        ({"top_p": 1.5}, "top_p is 1.5, the range is"),
        ({"regex": "a", "min_tokens": 1}, "min_tokens is 1, and regex says when a text is whole"),
        ({"choice": {}}, "choice has no choices"),
    ],
)
async def test_what_cannot_be_served_is_refused_by_vllm_s_name(
    router: Router, replica: Replica, params: dict[str, Any], words: str
) -> None:
    code, details = await router.refusal(router.call(**params))
    assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details
    await replica.idle()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "text is not supported: the prompt must be tokenized"),
        ({"text": "Hello"}, "text is not supported"),
        ({"tokenized": {"input_ids": []}}, "input_ids is empty"),
        ({"tokenized": {"input_ids": [WIDTH]}}, f"input_ids has id {WIDTH}"),
        ({"tokenized": {"input_ids": [1] * 64}}, "64 tokens"),
        ({"tokenized": {"input_ids": [1]}, "mm_inputs": {}}, "mm_inputs is not supported"),
        ({"tokenized": {"input_ids": [1]}, "media_refs": {}}, "media_refs is not supported"),
        ({"tokenized": {"input_ids": [1]}, "kv_transfer_params_json": "{}"}, "kv_transfer_params_json is not supported"),
        ({"tokenized": {"input_ids": [1]}, "data_parallel_rank": 1}, "data_parallel_rank is 1, there is rank 0 alone"),
        ({"tokenized": {"input_ids": [1]}, "request_id": "x" * 300}, "request_id has 300 characters"),
    ],
)
async def test_prompts_and_inputs_that_cannot_be_served_are_refused_by_name(router: Router, fields: dict[str, Any], words: str) -> None:
    code, details = await router.refusal(router.stub.Generate(vllm.GenerateRequest(**fields)))
    assert (code, words in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


async def test_an_id_is_under_way_once_and_those_without_one_do_not_meet(router: Router, replica: Replica) -> None:
    replica.gate.open.clear()
    calls = [router.call(request_id=name) for name in ("one", "", "")]
    dispatcher = replica.running._dispatcher
    assert dispatcher is not None
    await until(lambda: len(dispatcher.gateways) == 3)
    assert await router.refusal(router.call(request_id="one")) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "request 'one' is under way already",
    )
    replica.gate.open.set()
    assert [len([response async for response in call]) for call in calls] == [1, 1, 1]
    assert (await router.whole(request_id="one")).finish_reason == "length"


async def test_a_full_queue_refuses_and_a_lost_sampler_is_told(router: Router, replica: Replica) -> None:
    # Four run, four wait, and one is too many.
    replica.samplers[0].may_answer.clear()
    calls = [asyncio.create_task(_outcome(router.call(request_id=f"{index}", max_tokens=30, ignore_eos=True))) for index in range(9)]
    await until(lambda: any(call.done() for call in calls))
    assert [call.result() for call in calls if call.done()] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
    await replica.samplers[0].stop()
    assert sorted(code.name for code in await asyncio.gather(*calls)) == ["RESOURCE_EXHAUSTED", *["UNAVAILABLE"] * 8]
    await replica.idle()


async def _outcome(call: Any) -> grpc.StatusCode:
    try:
        _ = [response async for response in call]
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_log_probabilities_come_with_the_tokens_they_are_of(router: Router, replica: Replica) -> None:
    replica.samplers[0].logprobs = True
    whole = await router.whole(logprobs=2)
    assert list(whole.output_logprobs.token_ids) == list(whole.output_ids)
    assert [list(top.token_ids) for top in whole.output_logprobs.top_logprobs] == [[token, 0] for token in whole.output_ids]
    *chunks, last = await router.answer(logprobs=0, stream=True)
    assert [list(one.chunk.output_logprobs.token_ids) for one in chunks] == [list(one.chunk.token_ids) for one in chunks]
    assert not any(one.chunk.output_logprobs.top_logprobs for one in chunks)
    assert not last.complete.HasField("output_logprobs"), "they are in the chunks"


async def test_what_the_caller_asks_for_reaches_the_stages(router: Router, replica: Replica) -> None:
    params: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.25,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "seed": 5,
    }
    wanted = {
        **params,
        "repetition_penalty": 2,
        "min_tokens": 1,
        "logit_bias": {2: -1.5, 1: 2.0},
        "stop": ["x"],
        "skip_special_tokens": True,
    }
    await router.whole(**wanted, spaces_between_special_tokens=True, include_stop_str_in_output=False)
    (opening,) = [opening for frame in replica.samplers[0].frames for opening in frame.open]
    sampling, stopping = opening.sampling, opening.stopping
    assert {name: getattr(sampling, name) for name in params} == params
    assert (sampling.repetition_penalty, stopping.min_tokens, list(stopping.stop_strings)) == (2, 1, ["x"])
    assert (list(sampling.logit_bias_ids), list(sampling.logit_bias_values)) == ([1, 2], [2.0, -1.5])
    assert (stopping.skip_special_tokens, stopping.spaces_between_special_tokens, list(stopping.stop_token_ids)) == (True, True, [END])


async def test_what_is_served_is_told(router: Router, replica: Replica) -> None:
    assert (await router.stub.HealthCheck(vllm.HealthCheckRequest())).healthy
    model = await router.stub.GetModelInfo(vllm.GetModelInfoRequest())
    assert (model.served_model_name, model.model_path) == (replica.folder.name, str(replica.folder))
    assert (model.max_context_length, model.vocab_size, list(model.eos_token_ids), model.is_generation) == (64, WIDTH, [END, 999], True)
    server = await router.stub.GetServerInfo(vllm.GetServerInfoRequest())
    assert (server.server_type, server.data_parallel_size, server.block_size, server.active_requests) == ("vllm-grpc", 1, 4, 0)
    assert (server.kv_cache_dtype, server.model_dtype) == ("float32", "bfloat16")
    replica.samplers[0].may_answer.clear()
    call = router.call(request_id="held", temperature=1)
    await until(lambda: replica.running._servicer.load.running_requests == 1)
    (load,) = (await router.stub.GetLoads(vllm.GetLoadsRequest())).loads
    assert (load.num_running_reqs, load.num_total_reqs, load.max_total_num_tokens) == (1, 1, 128)
    replica.samplers[0].may_answer.set()
    _ = [response async for response in call]


async def test_the_tokenizer_s_files_are_given_as_they_are_and_no_weights(router: Router, replica: Replica) -> None:
    (replica.folder / "chat_template.jinja").write_text("{{ messages }}" * 10_000)
    (replica.folder / "model.safetensors").write_bytes(b"weights")
    chunks = [chunk async for chunk in router.stub.GetTokenizer(smg.GetTokenizerRequest())]
    content = b"".join(chunk.data for chunk in chunks)
    assert len(chunks) > 2
    assert [chunk.sha256 for chunk in chunks] == [""] * (len(chunks) - 1) + [hashlib.sha256(content).hexdigest()]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert set(archive.namelist()) == {"tokenizer.json", "config.json", "generation_config.json", "chat_template.jinja"}
        assert archive.read("chat_template.jinja").decode() == "{{ messages }}" * 10_000


async def test_calls_that_are_not_served_say_so(router: Router) -> None:
    stub = router.stub
    for call, request in (
        (stub.Embed, vllm.EmbedRequest()),
        (stub.FlushCache, smg.FlushCacheRequest()),
        (stub.StartProfile, smg.StartProfileRequest()),
        (stub.StopProfile, smg.StartProfileRequest()),
        (stub.SubscribeKvEvents, smg.SubscribeKvEventsRequest()),
    ):
        code, details = await router.refusal(call(request))
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "is not served" in details


async def test_a_replica_without_a_sampler_says_that_it_is_not_healthy(router: Router, replica: Replica) -> None:
    await replica.samplers[0].stop()
    await until(replica.is_not_ready)
    assert not (await router.stub.HealthCheck(vllm.HealthCheckRequest())).healthy


async def test_a_replica_that_loads_or_leaves_is_not_healthy_and_refuses(replica: Replica) -> None:
    replica.may_load.clear()
    await replica.start_loading(vllm_listen="127.0.0.1:0")
    assert replica.running.vllm_port is not None
    router = Router(replica.running.vllm_port)
    assert (await router.refusal(router.stub.HealthCheck(vllm.HealthCheckRequest())))[0] is grpc.StatusCode.UNAVAILABLE
    assert not await is_ready(router.channel, "vllm.grpc.engine.VllmEngine", timeout_s=TIMEOUT_S)
    assert (await router.refusal(router.call()))[0] is grpc.StatusCode.UNAVAILABLE
    replica.may_load.set()
    await replica.ready()
    assert await is_ready(router.channel, "vllm.grpc.engine.VllmEngine", timeout_s=TIMEOUT_S)
    replica.gate.open.clear()
    call = router.call(max_tokens=8)
    dispatcher = replica.running._dispatcher
    assert dispatcher is not None
    await until(lambda: bool(dispatcher.gateways))
    stopping = asyncio.create_task(replica.running.stop())
    await until(lambda: not replica.running.health.ready)
    replica.gate.open.set()
    (response,) = [response async for response in call]
    assert response.complete.completion_tokens == 8, "requests under way end"
    await stopping
    await router.channel.close()


async def test_with_the_stage_s_certificate_routers_show_one_of_a_name_that_is_let_in(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("model")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    ours = Authority(tmp_path_factory.mktemp("certificates"))
    sampler_options = {"tls": server_end(ours.files("sampler"), "compute")}
    replica = Replica(folder, client_end(ours.files("gateway"), "compute"), sampler_options)
    try:
        certificate = settings_of(ours.files("compute"))
        await (await replica.start(vllm_listen="127.0.0.1:0", tls_clients=("gateway", "smg"), **certificate)).ready()
        assert replica.running.vllm_port is not None
        for name, tls in (
            ("smg", client_end(ours.files("smg"), "compute")),
            ("other", client_end(ours.files("other"), "compute")),
            ("", None),
        ):
            router = Router(replica.running.vllm_port, tls)
            if name == "smg":
                assert (await router.whole()).finish_reason == "length"
            else:
                code, _ = await router.refusal(router.call())
                assert code is (grpc.StatusCode.PERMISSION_DENIED if name else grpc.StatusCode.UNAVAILABLE)
            await router.channel.close()
        assert replica.running.registry.get_sample_value("triserve_tls_refused_total", {"reason": "peer"}) == 1
    finally:
        await replica.stop()
