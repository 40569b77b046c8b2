"""A router of vLLM's gets from a replica the ids that the gateway's clients get, stops, forms and log-probabilities included."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import grpc
import pytest

from tests.e2e.local_pipeline import Pipeline

REASON = "smg-grpc-proto is not installed"
vllm: Any = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2", reason=REASON)
vllm_grpc: Any = pytest.importorskip("smg_grpc_proto.generated.vllm_engine_pb2_grpc", reason=REASON)

SCHEMA = '{"type":"object","properties":{"a":{"type":"boolean"}},"required":["a"],"additionalProperties":false}'
# What the gateway is asked, and what else the router says of the same.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({"temperature": 0}, {"temperature": 0}),
    "sampled": ({"seed": 7, "temperature": 1.5, "top_k": 40}, {"seed": 7, "temperature": 1.5, "top_k": 40}),
    "choices": ({"seed": 7, "n": 3, "temperature": 1}, {"seed": 7, "n": 3, "temperature": 1}),
    "penalties": ({"temperature": 0, "presence_penalty": 1, "logit_bias": {"40": 3}}, {"presence_penalty": 1, "logit_bias": {40: 3}}),
    "form": ({"temperature": 0, "guided_json": SCHEMA}, {"json_schema": SCHEMA}),
    "choice": ({"temperature": 0, "guided_choice": ["yes", "no"]}, {"choice": {"choices": ["yes", "no"]}}),
}


def gateway_s(pipeline: Pipeline, **fields: Any) -> Any:
    body = json.dumps({"prompt": "What is Triserve?", "max_tokens": 24, "return_token_ids": True, **fields}).encode()
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    with urllib.request.urlopen(urllib.request.Request(f"{pipeline.url}/v1/completions", body, headers), timeout=60) as response:
        return json.load(response)["choices"]


def router_s(pipeline: Pipeline, prompt: list[int], *, stream: bool = False, **params: Any) -> list[Any]:
    wanted = {"temperature": 0, "max_tokens": 24, "skip_special_tokens": True, **params}
    request = vllm.GenerateRequest(tokenized={"input_ids": prompt}, sampling_params=vllm.SamplingParams(**wanted), stream=stream)
    with grpc.insecure_channel(pipeline.environment["COMPUTE_VLLM_LISTEN"]) as channel:
        return list(vllm_grpc.VllmEngineStub(channel).Generate(request, timeout=60))


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_are_those_that_the_gateway_s_clients_get(pipeline: Pipeline, kind: str) -> None:
    asked, params = KINDS[kind]
    choices = gateway_s(pipeline, **asked)
    prompt = choices[0]["prompt_token_ids"]
    wholes = {answer.complete.index: answer.complete for answer in router_s(pipeline, prompt, **params)}
    streamed: dict[int, list[int]] = {}
    for answer in router_s(pipeline, prompt, stream=True, **params):
        streamed.setdefault(answer.chunk.index, []).extend(answer.chunk.token_ids)
    for choice in choices:
        whole = wholes[choice["index"]]
        assert choice["token_ids"] == list(whole.output_ids) == streamed[choice["index"]]
        assert choice["finish_reason"] == whole.finish_reason


def test_the_stop_string_that_came_is_named(pipeline: Pipeline) -> None:
    (whole,) = gateway_s(pipeline, temperature=0)
    stop = whole["text"][5:9]
    (choice,) = gateway_s(pipeline, temperature=0, stop=["none", stop])
    (answer,) = router_s(pipeline, choice["prompt_token_ids"], stop=["none", stop])
    assert list(answer.complete.output_ids) == choice["token_ids"]
    assert (answer.complete.finish_reason, answer.complete.matched_stop_str) == ("stop", stop)


@pytest.mark.parametrize("max_tokens", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_the_prompt_are_the_gateway_s(pipeline: Pipeline, stream: bool, max_tokens: int) -> None:
    (choice,) = gateway_s(pipeline, temperature=0, prompt_logprobs=2, max_tokens=max_tokens)
    prompt = choice["prompt_token_ids"]
    first, *others = router_s(pipeline, prompt, prompt_logprobs=2, max_tokens=max_tokens, n=2, seed=1, stream=stream)
    told = [
        one for one in (getattr(answer, answer.WhichOneof("response")) for answer in [first, *others]) if one.HasField("input_logprobs")
    ]
    assert [one.index for one in told] == [0]
    logprobs = told[0].input_logprobs
    assert list(logprobs.token_ids) == prompt
    assert not logprobs.token_logprobs[0].HasField("value")
    for index, token in enumerate(prompt[1:], 1):
        expected = choice["prompt_logprobs"][index]
        assert logprobs.token_logprobs[index].value == pytest.approx(expected[str(token)]["logprob"], abs=1e-6)
        assert set(map(str, logprobs.top_logprobs[index].token_ids)) <= set(expected)


def test_log_probabilities_are_the_gateway_s(pipeline: Pipeline) -> None:
    (choice,) = gateway_s(pipeline, temperature=0, logprobs=2)
    (answer,) = router_s(pipeline, choice["prompt_token_ids"], logprobs=2)
    logprobs = answer.complete.output_logprobs
    assert list(logprobs.token_logprobs) == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-6)
    assert all(len(top.token_ids) == 2 and top.values[0] >= top.values[1] for top in logprobs.top_logprobs)
