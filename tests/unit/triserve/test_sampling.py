"""Every limit of the contract, by name."""

from __future__ import annotations

import math
from typing import Any

import pytest

from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Sampling, Stopping, check_ids

WIDTH = 100


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 100.5}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.01}, "min_p"),
        ({"min_p": 1.01}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"repetition_penalty": 10.5}, "repetition_penalty"),
        ({"presence_penalty": -10.5}, "presence_penalty"),
        ({"frequency_penalty": 10.5}, "frequency_penalty"),
        ({"logit_bias_ids": (WIDTH,), "logit_bias_values": (1.0,)}, "logit_bias_ids"),
        ({"logit_bias_ids": (5, 5), "logit_bias_values": (1.0, 2.0)}, "logit_bias_ids"),
        ({"logit_bias_ids": tuple(range(1025)), "logit_bias_values": (0.0,) * 1025}, "logit_bias_ids"),
        ({"logit_bias_ids": (5,)}, "logit_bias_values"),
        ({"logit_bias_values": (1.0,)}, "logit_bias_values"),
        ({"logit_bias_ids": (5,), "logit_bias_values": (100.5,)}, "logit_bias_values"),
        ({"logit_bias_ids": (5,), "logit_bias_values": (math.nan,)}, "logit_bias_values"),
        ({"seed": None}, "seed"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
    ids=str,
)
def test_a_sampling_field_beyond_its_limit_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Sampling(**{"seed": 1, **fields}).check(WIDTH)
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.0, "seed": None},
        {"top_k": 1, "seed": None},
        {"temperature": 100.0, "top_k": 2**32 - 1, "top_p": 1e-30, "min_p": 1.0, "repetition_penalty": 10.0},
        {"presence_penalty": -10.0, "frequency_penalty": 10.0, "top_logprobs": 20, "seed": 2**64 - 1},
        {"logit_bias_ids": tuple(range(WIDTH)), "logit_bias_values": (-100.0,) * WIDTH, "top_logprobs": 0},
    ],
    ids=str,
)
def test_values_at_their_limits_are_taken(fields: dict[str, Any]) -> None:
    Sampling(**{"seed": 0, **fields}).check(WIDTH)


@pytest.mark.parametrize(
    ("stopping", "field"),
    [
        (Stopping(None), "max_tokens"),
        (Stopping(0), "max_tokens"),
        (Stopping(1, stop_token_ids=frozenset({3, WIDTH})), "stop_token_ids"),
        (Stopping(1, stop_strings=("a",) * 17), "stop_strings"),
        (Stopping(1, stop_strings=("a", "")), "stop_strings"),
        (Stopping(1, stop_strings=("a" * 257,)), "stop_strings"),
    ],
    ids=str,
)
def test_a_stopping_field_beyond_its_limit_is_named(stopping: Stopping, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        stopping.check(WIDTH)
    assert caught.value.field == field


def test_ids_are_below_the_logits_width() -> None:
    check_ids("ids", [], 1)
    check_ids("ids", [0], 1)
    with pytest.raises(InvalidRequest, match="ids has id 1, the limit is 0"):
        check_ids("ids", [0, 1], 1)
