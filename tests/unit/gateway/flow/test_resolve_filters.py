"""Typical-p, top-n-sigma and XTC: ranges, defaults, and what comes to nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gateway.flow.call import Wishes
from gateway.flow.limits import Limits
from gateway.flow.resolve import resolve_sampling
from gateway.flow.served_model import ServedModel, served_model
from tests.fakes.fake_stages import MODEL
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import common_pb2, compute_pb2, tokenizer_pb2

RANGES = [("typical_p", 0, 1, True), ("top_n_sigma", 0, 100, True), ("xtc_probability", 0, 1, False), ("xtc_threshold", 0, 1, True)]


def sampling(model: ServedModel = MODEL, /, **wishes: Any) -> common_pb2.SamplingParams:
    return resolve_sampling(Wishes(**wishes), model, Limits())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("name", "low", "high", "open_below"), RANGES)
def test_ranges_are_those_of_the_contract_even_where_greed_makes_them_moot(
    name: str, low: float, high: float, open_below: bool, temperature: float
) -> None:
    for value in (high, low + 1e-6 if open_below else low):
        sampling(temperature=temperature, **{name: value})
    asks_for_nothing = name == "top_n_sigma"
    for value in (low - 1e-6, high + 1e-6, math.nan, math.inf, -math.inf, *([low] if open_below and not asks_for_nothing else [])):
        with pytest.raises(InvalidRequest) as caught:
            sampling(temperature=temperature, **{name: value})
        assert caught.value.field == name
        assert caught.value.message == f"{name} is {value:g}, the range is {'(' if open_below else '['}{low}, {high}]"


def test_each_arrives_as_it_was_given() -> None:
    wishes: dict[str, Any] = {"typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.25, "xtc_threshold": 0.125}
    assert sampling(**wishes) == common_pb2.SamplingParams(temperature=1, **wishes)


@pytest.mark.parametrize(
    "wishes",
    [
        {"typical_p": 1.0},
        {"top_n_sigma": 0},
        {"top_n_sigma": -1},
        {"xtc_probability": 0.0},
        {"xtc_probability": 0.0, "xtc_threshold": 0.5},
        {"xtc_threshold": 0.5},
    ],
)
def test_what_asks_for_nothing_is_left_unset(wishes: dict[str, float]) -> None:
    assert sampling(**wishes) == sampling()


def test_the_contracts_own_threshold_is_left_unset_in_either_precision() -> None:
    narrow = common_pb2.SamplingParams(xtc_threshold=0.1).xtc_threshold
    for threshold in (0.1, narrow):
        assert sampling(xtc_probability=0.5, xtc_threshold=threshold) == sampling(xtc_probability=0.5)


def test_a_greedy_answer_depends_on_none_of_them() -> None:
    greedy = sampling(temperature=0.0, typical_p=0.5, top_n_sigma=1.5, xtc_probability=0.25, xtc_threshold=0.125)
    assert greedy == sampling(temperature=0.0) == sampling(replace(MODEL, default_typical_p=0.5), temperature=0.0)


def test_the_authors_typical_p_is_a_default_like_his_top_p() -> None:
    info = tokenizer_pb2.GetTokenizerInfoResponse(default_typical_p=0.5)
    replica = compute_pb2.GetComputeInfoResponse(logits_width=9, max_model_len_tokens=9)
    model = served_model(info, [replica])
    assert model.default_typical_p == 0.5
    assert served_model(tokenizer_pb2.GetTokenizerInfoResponse(), [replica]).default_typical_p is None
    assert sampling(model).typical_p == 0.5
    assert sampling(model, typical_p=0.25).typical_p == 0.25
    assert not sampling(model, typical_p=1.0).HasField("typical_p")
