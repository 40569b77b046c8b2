"""Submissions: each field in its range, each refusal by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from compute_svc.replica.submission import read_submission
from compute_svc.wire.request import Request
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, compute_pb2

WIDTH, MOST = 100, 50


def _message(**changes: Any) -> compute_pb2.SubmitRequest:
    fields: dict[str, Any] = {
        "token_ids": [1, 2, 3],
        "sampling": common_pb2.SamplingParams(temperature=0),
        "stopping": common_pb2.StoppingParams(max_tokens=4),
    }
    return compute_pb2.SubmitRequest(**{**fields, **changes})


def _read(message: compute_pb2.SubmitRequest) -> Request:
    return read_submission(message, number=5, logits_width=WIDTH, hidden_size=2, max_request_tokens=MOST, now=10.0)


def _sampling(**fields: Any) -> Sampling:
    return _read(_message(sampling=common_pb2.SamplingParams(seed=1, **fields))).sampling


def test_unset_parameters_mean_what_the_contract_says() -> None:
    assert _sampling() == Sampling(temperature=1.0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, xtc_probability=0.0, seed=1)


def test_zero_is_not_unset() -> None:
    options = _sampling(temperature=0, top_logprobs=0)
    assert (options.temperature, options.top_logprobs) == (0.0, 0)


def test_set_parameters_arrive() -> None:
    fields: dict[str, Any] = {"temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "top_logprobs": 3}
    penalties: dict[str, Any] = {"repetition_penalty": 1.5, "presence_penalty": -2.0, "frequency_penalty": 0.5}
    options = _sampling(**fields, **penalties, logit_bias_ids=[9, 4], logit_bias_values=[-100, 100])
    assert options == Sampling(**fields, **penalties, logit_bias_ids=(9, 4), logit_bias_values=(-100, 100), seed=1)


def test_the_rest_of_a_submission_arrives() -> None:
    stopping = common_pb2.StoppingParams(max_tokens=9, min_tokens=2, stop_token_ids=[4, 5, 4], stop_strings=["x"])
    request = _read(_message(tenant="t", generated_token_ids=[6, 7], system_tokens=3, stopping=stopping, deadline_ms=1500, priority=-3))
    assert (request.number, request.tenant, request.submitted_at, request.deadline, request.priority) == (5, "t", 10.0, 11.5, -3)
    assert (request.prompt.tolist(), request.generated.tolist()) == ([1, 2, 3], [6, 7])
    assert (request.max_tokens, request.min_tokens, request.stop_token_ids) == (9, 2, frozenset({4, 5}))


def test_no_deadline_is_none() -> None:
    assert _read(_message()).deadline is None


@pytest.mark.parametrize(("asked", "read"), [({}, 0), ({"priority": 0}, 0), ({"priority": -10}, -10), ({"priority": 10}, 10)])
def test_a_priority_in_its_range_arrives_and_none_is_normal(asked: dict[str, int], read: int) -> None:
    assert _read(_message(**asked)).priority == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0),
        ("repetition_penalty", 10.1),
        ("repetition_penalty", math.nan),
        ("presence_penalty", -10.1),
        ("presence_penalty", 10.1),
        ("frequency_penalty", -10.1),
        ("frequency_penalty", math.inf),
    ],
)
def test_a_sampling_parameter_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        _sampling(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 100),
        ("top_k", 1),
        ("top_p", 1),
        ("min_p", 1),
        ("repetition_penalty", 10),
        ("presence_penalty", -10),
        ("frequency_penalty", 10),
    ],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    assert getattr(_sampling(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("ids", "values", "field"),
    [
        ([WIDTH], [1], "logit_bias_ids"),
        ([3, 3], [1, 2], "logit_bias_ids"),
        ([3, 4], [1], "logit_bias_values"),
        ([], [1], "logit_bias_values"),
        ([3], [100.5], "logit_bias_values"),
        ([3], [math.nan], "logit_bias_values"),
    ],
)
def test_a_wrong_bias_is_refused_by_name(ids: list[int], values: list[float], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _sampling(logit_bias_ids=ids, logit_bias_values=values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"token_ids": []}, "token_ids", "token_ids is empty"),
        ({"token_ids": [1, WIDTH]}, "token_ids", "token_ids has id 100, the limit is 99"),
        ({"generated_token_ids": [1 << 31]}, "generated_token_ids", "generated_token_ids has id"),
        ({"system_tokens": 4}, "system_tokens", "system_tokens is 4, the prompt has 3 tokens"),
        ({"stopping": common_pb2.StoppingParams()}, "max_tokens", "max_tokens is not set"),
        ({"hidden_states": 4}, "hidden_states", "hidden_states is 4, which is none"),
        (
            {"sampling": common_pb2.SamplingParams(temperature=0, logprob_token_ids=[1])},
            "logprob_token_ids",
            "logprob_token_ids is set without top_logprobs",
        ),
        (
            {"sampling": common_pb2.SamplingParams(temperature=0, prompt_logprobs=21)},
            "prompt_logprobs",
            "prompt_logprobs is 21, the limit is 20",
        ),
        ({"stopping": common_pb2.StoppingParams(max_tokens=1, stop_token_ids=[WIDTH])}, "stop_token_ids", "stop_token_ids has id 100"),
        ({"sampling": common_pb2.SamplingParams()}, "seed", "seed is not set"),
        ({"priority": -11}, "priority", r"priority is -11, the range is \[-10, 10\]"),
        ({"priority": 2**31 - 1}, "priority", r"priority is 2147483647, the range is \[-10, 10\]"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        _read(_message(**changes))
    assert caught.value.field == field


def test_a_greedy_request_needs_no_seed() -> None:
    assert _read(_message()).sampling.temperature == 0.0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tenant": "x" * 257}, "tenant"),
        ({"request_id": "x" * 257}, "request_id"),
        ({"token_ids": [1] * MOST}, "token_ids"),
        ({"generated_token_ids": [1] * (MOST + 1)}, "generated_token_ids"),
        ({"stopping": common_pb2.StoppingParams(max_tokens=1, stop_token_ids=[1] * (limits.MAX_LISTED_TOKEN_IDS + 1))}, "stop_token_ids"),
        ({"sampling": common_pb2.SamplingParams(temperature=0, logit_bias_ids=[1] * 1025)}, "logit_bias_ids"),
        ({"sampling": common_pb2.SamplingParams(temperature=0, top_logprobs=21)}, "top_logprobs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_long_is_refused_before_it_is_read(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match="the limit is") as caught:
        _read(_message(**changes))
    assert caught.value.field == field


def test_the_longest_that_is_allowed_is_taken() -> None:
    stopping = common_pb2.StoppingParams(max_tokens=1, stop_token_ids=[1] * limits.MAX_LISTED_TOKEN_IDS)
    sampling = common_pb2.SamplingParams(temperature=0, top_logprobs=20)
    request = _read(_message(tenant="x" * 256, request_id="x" * 256, token_ids=[1] * (MOST - 1), stopping=stopping, sampling=sampling))
    assert request.prompt.size == MOST - 1
