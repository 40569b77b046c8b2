"""Wishes become parameters in which nothing is left to default."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow.call import Call, Wishes
from gateway.flow.limits import Limits
from gateway.flow.resolve import (
    check_priority,
    check_prompt_ids,
    check_shape,
    check_template_reads,
    kept_prompt_tokens,
    resolve_sampling,
    resolve_stopping,
)
from gateway.flow.served_model import ServedModel
from triserve.rpc.errors import InvalidRequest, PromptTooLong
from triserve.v1 import common_pb2, tokenizer_pb2

MODEL = ServedModel(
    tokenizer_sha256="ab",
    weights_revision="cd",
    computation="float32 on cpu",
    eos_token_ids=(7, 9),
    default_temperature=None,
    default_top_k=None,
    default_top_p=None,
    has_chat_template=True,
    template_arguments=("reasoning_effort",),
    vocab_size=90,
    max_model_len_tokens=100,
    logits_width=96,
    serves_by_priority=False,
)
AUTHORED = replace(
    MODEL, default_temperature=0.5, default_top_k=20, default_top_p=0.75, default_min_p=0.125, default_repetition_penalty=1.5
)
LIMITS = Limits()


def sampling(model: ServedModel = MODEL, **wishes: Any) -> common_pb2.SamplingParams:
    return resolve_sampling(Wishes(**wishes), model, LIMITS)


def stopping(prompt_tokens: int = 10, default: int | None = None, **wishes: Any) -> common_pb2.StoppingParams:
    return resolve_stopping(Wishes(**wishes), MODEL, LIMITS, prompt_tokens=prompt_tokens, prompt_field="prompt", default_max_tokens=default)


def test_unset_wishes_take_the_authors_defaults_then_the_contracts() -> None:
    assert sampling() == common_pb2.SamplingParams(temperature=1)
    assert sampling(AUTHORED) == common_pb2.SamplingParams(temperature=0.5, top_k=20, top_p=0.75, min_p=0.125, repetition_penalty=1.5)


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_wish_wins_over_the_author_and_top_k_of_zero_or_minus_one_means_all(top_k: int) -> None:
    assert sampling(AUTHORED, temperature=2.0, top_k=top_k, top_p=1.0, min_p=0.0, repetition_penalty=1.0) == common_pb2.SamplingParams(
        temperature=2
    )


def test_top_p_of_zero_is_greedy_whatever_the_temperature() -> None:
    for temperature in (None, 0.0, 1.5):
        assert sampling(AUTHORED, temperature=temperature, top_p=0.0) == common_pb2.SamplingParams(temperature=0, repetition_penalty=1.5)
    with pytest.raises(InvalidRequest, match="temperature"):
        sampling(temperature=-1.0, top_p=0.0)


def test_an_argument_the_template_does_not_read_is_refused_where_it_has_a_field_of_its_own() -> None:
    call = Call(
        request_id="x", tenant="t", route="chat", model="", prompts=(), prompt_field="messages", template_must_read=("reasoning_effort",)
    )
    check_template_reads(call, MODEL)
    with pytest.raises(InvalidRequest, match="does not read it") as caught:
        check_template_reads(call, replace(MODEL, template_arguments=()))
    assert caught.value.field == "reasoning_effort"


def test_a_temperature_of_zero_differs_from_none() -> None:
    assert sampling(AUTHORED, temperature=0.0) == common_pb2.SamplingParams(temperature=0, repetition_penalty=1.5)


def test_values_without_effect_are_left_unset() -> None:
    neutral = sampling(top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=((3, 0.0),))
    assert neutral == sampling()
    assert sampling(temperature=0.0, top_p=0.5, top_k=4, min_p=0.5) == sampling(temperature=0.0)


@pytest.mark.parametrize("penalty", [0.5, 2.0])
def test_a_repetition_penalty_below_one_counts_as_one_above_does(penalty: float) -> None:
    assert sampling(repetition_penalty=penalty) == common_pb2.SamplingParams(temperature=1, repetition_penalty=penalty)


def test_an_author_s_top_p_of_more_than_one_truncates_nothing() -> None:
    assert sampling(replace(MODEL, default_top_p=1.5)) == sampling()


def test_the_first_wrong_id_is_named() -> None:
    for token_ids, wrong in (([0, 95, 96, 97], 96), ([1, -1, -2], -1), ([0, 1, 2**40, -1], 2**40)):
        with pytest.raises(InvalidRequest, match=f"token id {wrong},"):
            check_prompt_ids(token_ids, Wishes(), MODEL, field="prompt")


def test_biases_are_in_the_order_of_their_ids() -> None:
    params = sampling(logit_bias=((5, 1.0), (2, -1.0)))
    assert (list(params.logit_bias_ids), list(params.logit_bias_values)) == ([2, 5], [-1, 1])


def test_no_log_probabilities_differ_from_those_of_the_drawn_token_alone() -> None:
    assert not sampling().HasField("top_logprobs")
    assert sampling(top_logprobs=0).HasField("top_logprobs")


RANGES = [
    ("temperature", 0, 100, False),
    ("top_p", 0, 1, False),
    ("min_p", 0, 1, False),
    ("repetition_penalty", 0, 10, True),
    ("presence_penalty", -10, 10, False),
    ("frequency_penalty", -10, 10, False),
]


@pytest.mark.parametrize(("name", "low", "high", "open_below"), RANGES)
def test_ranges_are_those_of_the_contract(name: str, low: float, high: float, open_below: bool) -> None:
    def at(value: float) -> common_pb2.SamplingParams:
        wishes: dict[str, Any] = {name: value}
        return sampling(**wishes)

    at(high)
    at(low + (1e-6 if open_below else 0))
    for value in (low - 1e-6, high + 1e-6, math.nan, math.inf, -math.inf, *([low] if open_below else [])):
        with pytest.raises(InvalidRequest, match=name) as caught:
            at(value)
        assert caught.value.field == name


def test_ranges_hold_where_greed_makes_the_value_moot() -> None:
    wishes: dict[str, Any]
    for wishes in ({"top_p": -0.5}, {"top_k": -2}, {"min_p": 2.0}):
        with pytest.raises(InvalidRequest, match=next(iter(wishes))):
            sampling(temperature=0.0, **wishes)


@pytest.mark.parametrize("token", [-1, 96, 2**40])
def test_every_id_is_below_the_logits_width(token: int) -> None:
    with pytest.raises(InvalidRequest, match="logit_bias"):
        sampling(logit_bias=((token, 1.0),))
    with pytest.raises(InvalidRequest, match="stop_token_ids"):
        stopping(stop_token_ids=(1, token))
    with pytest.raises(InvalidRequest, match=rf"prompt has token id {token}, ids are in \[0, 96\)"):
        check_prompt_ids([1, token, 2], Wishes(), MODEL, field="prompt")
    check_prompt_ids([0, 95], Wishes(), MODEL, field="prompt")


def test_more_ids_than_fit_are_refused_before_they_are_looked_at() -> None:
    check_prompt_ids([1] * 99, Wishes(), MODEL, field="prompt")
    with pytest.raises(PromptTooLong, match="prompt has 100 tokens, the limit is 99"):
        check_prompt_ids([-1] * 100, Wishes(), MODEL, field="prompt")


def test_an_id_has_one_bias() -> None:
    with pytest.raises(InvalidRequest, match="token id 5 twice"):
        sampling(logit_bias=((5, 1.0), (5, 2.0)))


def test_unset_max_tokens_is_what_fits_or_the_routes_default_where_that_is_less() -> None:
    assert stopping().max_tokens == 90
    assert stopping(default=16).max_tokens == 16
    assert stopping(95, default=16).max_tokens == 5


def test_prompt_and_answer_fit_exactly_or_are_refused_with_the_numbers() -> None:
    assert stopping(60, max_tokens=40).max_tokens == 40
    with pytest.raises(
        PromptTooLong, match=r"maximum context length is 100 tokens\. However, max_tokens is 41 and prompt has 60 tokens"
    ) as caught:
        stopping(60, max_tokens=41)
    assert caught.value.field == "max_tokens"
    assert stopping(99).max_tokens == 1
    with pytest.raises(PromptTooLong, match="prompt has 100 tokens, the limit is 99"):
        stopping(100)


def test_the_last_value_that_is_allowed_is_allowed() -> None:
    assert stopping(max_tokens=1).max_tokens == 1
    assert stopping(99, max_tokens=1).max_tokens == 1
    assert stopping(max_tokens=3, min_tokens=3).min_tokens == 3
    assert not stopping(min_tokens=0).HasField("min_tokens")
    assert len(stopping(stop_strings=("x" * 256,) * 16).stop_strings) == 16
    assert len(stopping(stop_strings=("x",)).stop_strings) == 1
    assert stopping(stop_token_ids=tuple(range(64))).stop_token_ids[-1] == 63
    with pytest.raises(InvalidRequest, match="the limit is 64"):
        stopping(stop_token_ids=tuple(range(65)))
    assert sampling(top_k=1).top_k == 1
    assert sampling(top_k=2**32 - 1).top_k == 2**32 - 1
    assert sampling(top_logprobs=20).top_logprobs == 20
    assert list(sampling(logit_bias=((0, 100.0), (95, -100.0))).logit_bias_ids) == [0, 95]
    for wrong in (96, -1):
        with pytest.raises(InvalidRequest, match=r"ids are in \[0, 96\)"):
            sampling(logit_bias=((wrong, 1.0),))
    check_prompt_ids([0, 95] * 49 + [95], Wishes(), MODEL, field="prompt")
    for seed in (-(2**63), 2**64 - 1):
        sampling(seed=seed)


@pytest.mark.parametrize(("wishes", "what"), [({"min_tokens": 91}, "at most 90"), ({"max_tokens": 3, "min_tokens": 4}, "at most 3")])
def test_min_tokens_is_checked_against_the_resolved_max_tokens(wishes: dict[str, int], what: str) -> None:
    with pytest.raises(InvalidRequest, match=what) as caught:
        stopping(**wishes)
    assert caught.value.field == "min_tokens"


def test_end_of_text_stops_unless_ignored() -> None:
    assert list(stopping(stop_token_ids=(8, 7)).stop_token_ids) == [7, 8, 9]
    assert list(stopping(stop_token_ids=(8,), ignore_eos=True).stop_token_ids) == [8]


def test_what_is_text_of_an_answer_is_sent_where_it_is_not_as_usual() -> None:
    plain = stopping(stop_strings=("x",))
    assert stopping(stop_strings=("x",), include_stop_string=True).include_stop_string
    assert stopping(include_stop_string=True) == stopping(), "there is none"
    assert stopping(stop_strings=("x",), spaces_between_special_tokens=False) == plain, "none are shown"
    shown = stopping(skip_special_tokens=False)
    assert (shown.HasField("skip_special_tokens"), shown.skip_special_tokens) == (True, False)
    assert not shown.HasField("spaces_between_special_tokens")
    assert stopping(skip_special_tokens=False, spaces_between_special_tokens=False).HasField("spaces_between_special_tokens")


@pytest.mark.parametrize(
    ("asked", "wishes", "default", "kept"),
    [
        (None, {}, None, None),
        (7, {}, None, 7),
        (-1, {"max_tokens": 30}, None, 70),
        (-1, {}, 16, 84),
        (-1, {}, None, 99),
        (-1, {"max_tokens": 500}, None, 1),
    ],
)
def test_as_many_of_a_prompt_s_last_ids_are_kept_as_asked_for_or_as_leave_room(
    asked: int | None, wishes: dict[str, Any], default: int | None, kept: int | None
) -> None:
    model = replace(MODEL, max_model_len_tokens=100)
    cut = call(truncate_prompt_tokens=asked, wishes=Wishes(**wishes), default_max_tokens=default)
    check_shape(cut, LIMITS)
    assert kept_prompt_tokens(cut, model) == kept


@pytest.mark.parametrize("wrong", [0, -2, 2**32])
def test_no_other_number_of_a_prompt_s_ids_can_be_kept(wrong: int) -> None:
    with pytest.raises(InvalidRequest, match="must be -1 or at least 1") as caught:
        check_shape(call(truncate_prompt_tokens=wrong), LIMITS)
    assert caught.value.field == "truncate_prompt_tokens"


@pytest.mark.parametrize("stops", [("",), ("x" * 257,), ("x",) * 17])
def test_stop_strings_are_bounded_in_number_and_length(stops: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest, match="stop has"):
        stopping(stop_strings=stops)


def test_errors_use_the_clients_names() -> None:
    wishes: dict[str, Any] = {"max_tokens": 0, "spelling": {"max_tokens": "max_completion_tokens"}}
    with pytest.raises(InvalidRequest, match=r"^max_completion_tokens is 0"):
        stopping(**wishes)
    with pytest.raises(InvalidRequest, match=r"^logprobs is 99"):
        sampling(top_logprobs=99, spelling={"top_logprobs": "logprobs"})


def test_a_number_of_many_digits_is_not_sent_back_whole() -> None:
    with pytest.raises(InvalidRequest) as caught:
        sampling(seed=10**4000)
    assert len(caught.value.message) < 120


def call(**fields: Any) -> Call:
    return Call(**{"request_id": "x", "tenant": "t", "route": "chat", "model": "", "prompts": ((1,),), "prompt_field": "prompt", **fields})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 10**30}, "n"),
        ({"prompts": ()}, "prompt"),
        ({"prompts": ((),)}, "prompt"),
        ({"prompts": ((1,),) * 65}, "prompt"),
        ({"prompts": ((1,),) * 64, "n": 3}, "n"),
        (
            {"prompts": (tokenizer_pb2.EncodeRequest(chat=tokenizer_pb2.ChatInput(messages=[tokenizer_pb2.ChatMessage()] * 1025)),)},
            "prompt",
        ),
    ],
)
def test_a_call_that_asks_for_too_much_is_refused_before_any_work(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_shape(call(**fields), LIMITS)
    assert caught.value.field == field


def test_a_call_at_its_limits_is_accepted() -> None:
    check_shape(call(prompts=((1,),) * 64, n=2), LIMITS)
    check_shape(call(n=16), LIMITS)


BY_PRIORITY = replace(MODEL, serves_by_priority=True)


@given(st.integers(-10, 0), st.integers(-12, 12))
def test_a_priority_is_accepted_from_the_lowest_granted_to_the_end_of_the_range(lowest: int, priority: int) -> None:
    asked = call(priority=priority, lowest_priority=lowest)
    if lowest <= priority <= 10:
        check_priority(asked, BY_PRIORITY)
        return
    limit = rf"the lowest this client may ask for is {lowest}$" if -10 <= priority <= 10 else r"the range is \[-10, 10\]$"
    with pytest.raises(InvalidRequest, match=f"^priority is {priority}, {limit}") as caught:
        check_priority(asked, BY_PRIORITY)
    assert caught.value.field == "priority"


def test_where_no_replica_serves_by_priority_none_but_the_normal_one_is_accepted() -> None:
    check_priority(call(priority=0), MODEL)
    for priority in (-1, 1):
        with pytest.raises(InvalidRequest, match=f"^priority is {priority}, no compute replica here serves by priority") as caught:
            check_priority(call(priority=priority, lowest_priority=-10), MODEL)
        assert caught.value.field == "priority"


def test_a_priority_of_many_digits_is_not_sent_back_whole() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_priority(call(priority=-(10**4000)), BY_PRIORITY)
    assert len(caught.value.message) < 120
