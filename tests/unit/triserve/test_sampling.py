"""Every limit of the contract, by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest
from triserve.rpc.sampling import Grammar, Sampling, Stopping, check_ids, choice_seed
from triserve.v1 import common_pb2

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
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"logprob_token_ids": (1,)}, "logprob_token_ids"),
        ({"top_logprobs": 0, "logprob_token_ids": (WIDTH,)}, "logprob_token_ids"),
        ({"top_logprobs": 0, "logprob_token_ids": (1, 1)}, "logprob_token_ids"),
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
        {"prompt_logprobs": 20, "top_logprobs": 0, "logprob_token_ids": tuple(range(WIDTH))},
        {"prompt_logprobs": 0},
    ],
    ids=str,
)
def test_values_at_their_limits_are_taken(fields: dict[str, Any]) -> None:
    Sampling(**{"seed": 0, **fields}).check(WIDTH)


@pytest.mark.parametrize(
    ("stopping", "field"),
    [
        (Stopping(None), "max_tokens"),
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


OTHER_VALUES: dict[str, Any] = {"float": 0.25, "float | None": 0.25, "int": 3, "int | None": 3, "tuple[int, ...]": (1, 2)}


@pytest.mark.parametrize("field", dataclasses.fields(Sampling), ids=lambda field: field.name)
def test_every_parameter_travels(field: dataclasses.Field[Any]) -> None:
    values: Any = OTHER_VALUES | {
        "tuple[float, ...]": (0.5, -0.5),
        "tuple[tuple[int, ...], ...]": ((1,), (2, 3)),
        "Grammar | None": Grammar("regex", "a+"),
    }
    changes: dict[str, Any] = {"seed": 1, field.name: values[str(field.type)]}
    # Each has one entry for each of the other.
    if field.name.startswith("logit_bias"):
        changes |= {"logit_bias_ids": (1, 2), "logit_bias_values": (0.5, -0.5)}
    if field.name == "logprob_token_ids":
        changes["top_logprobs"] = 0
    if field.name == "dry_base":
        changes["dry_base"] = 2.0
    sampling = Sampling(**changes)
    assert sampling != Sampling(seed=None if field.name == "seed" else 1)
    message = common_pb2.SamplingParams.FromString(sampling.write().SerializeToString())
    assert Sampling.read(message, WIDTH) == sampling


def test_a_parameter_that_means_nothing_is_not_sent() -> None:
    assert Sampling(temperature=1.0, top_p=1.0).write() == common_pb2.SamplingParams()
    assert Sampling.read(common_pb2.SamplingParams(seed=1), WIDTH) == Sampling(seed=1)


def test_every_parameter_of_the_contract_is_known() -> None:
    assert set(common_pb2.SamplingParams.DESCRIPTOR.fields_by_name) == {field.name for field in dataclasses.fields(Sampling)}


LISTS = {
    "logit_bias_ids": limits.MAX_LOGIT_BIAS,
    "dry_breaker_ids": limits.MAX_LISTED_TOKEN_IDS,
    "allowed_token_ids": limits.MAX_LISTED_TOKEN_IDS,
    "banned_token_ids": limits.MAX_LISTED_TOKEN_IDS,
}


@pytest.mark.parametrize(("field", "most"), LISTS.items())
def test_a_list_has_a_limit(field: str, most: int) -> None:
    fields: dict[str, Any] = {field: [1] * (most + 1)}
    with pytest.raises(InvalidRequest, match=f"{field} has {most + 1} entries, the limit is {most}"):
        Sampling.read(common_pb2.SamplingParams(seed=1, **fields), WIDTH)


@pytest.mark.parametrize("field", ["dry_breaker_ids", "allowed_token_ids", "banned_token_ids"])
def test_a_listed_id_has_a_logit(field: str) -> None:
    fields: dict[str, Any] = {field: [WIDTH]}
    with pytest.raises(InvalidRequest, match=f"{field} has id {WIDTH}, the limit is {WIDTH - 1}"):
        Sampling.read(common_pb2.SamplingParams(seed=1, **fields), WIDTH)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([[]], "a sequence of 0 ids, the limits are 1 and 64"),
        ([[1] * 65], "a sequence of 65 ids, the limits are 1 and 64"),
        ([[1], [2, WIDTH]], f"id {WIDTH}, the limit is {WIDTH - 1}"),
        ([[1]] * 1025, "1025 entries, the limit is 1024"),
    ],
)
def test_bad_words_have_limits(words: list[list[int]], complaint: str) -> None:
    message = common_pb2.SamplingParams(seed=1, bad_words=[common_pb2.TokenSequence(token_ids=word) for word in words])
    with pytest.raises(InvalidRequest, match=f"bad_words has {complaint}"):
        Sampling.read(message, WIDTH)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"typical_p": 0.0}, "typical_p"),
        ({"top_n_sigma": 0.0}, "top_n_sigma"),
        ({"top_n_sigma": math.nan}, "top_n_sigma"),
        ({"xtc_probability": 1.5}, "xtc_probability"),
        ({"xtc_threshold": 0.0}, "xtc_threshold"),
        ({"dry_multiplier": -1.0}, "dry_multiplier"),
        ({"dry_base": 0.5}, "dry_base"),
        ({"dry_allowed_length": 0}, "dry_allowed_length"),
        ({"dry_allowed_length": 65}, "dry_allowed_length"),
    ],
)
def test_the_filters_have_ranges(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        Sampling(seed=1, **fields).check(WIDTH)
    assert refusal.value.field == field


CHANGING: dict[str, Any] = {
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "dry_multiplier": 0.5,
    "logit_bias_ids": (1,),
    "allowed_token_ids": (1,),
    "banned_token_ids": (1,),
    "bad_words": ((1,),),
}


@pytest.mark.parametrize(("field", "value"), CHANGING.items())
def test_what_changes_logits_is_known_to(field: str, value: Any) -> None:
    fields: dict[str, Any] = {field: value}
    assert Sampling(**fields).changes_logits
    assert not Sampling().changes_logits


@given(st.integers(-(2**63), 2**64 - 1))
def test_the_first_choice_has_the_requests_own_seed_and_others_have_others(seed: int) -> None:
    seeds = [choice_seed(seed, choice) for choice in range(16)]
    assert seeds[0] == seed % 2**64
    assert len(set(seeds)) == 16
    assert all(0 <= one < 2**64 for one in seeds)


def test_seeds_of_choices_are_splitmix64() -> None:
    # The published test vector of SplitMix64 for seed 1234567.
    assert [choice_seed(1234567, choice) for choice in (1, 2, 3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (common_pb2.Grammar(), "is of no kind"),
        (common_pb2.Grammar(regex="a" * 200_000, frame="b" * 100_000), "has 300000 bytes, the limit is 262144"),
        (common_pb2.Grammar(lark="a", markers=["x"] * 2), "has a marker twice"),
        (common_pb2.Grammar(regex="a", frame="b", frame_markers=[str(number) for number in range(17)]), "has 17 entries, the limit is 16"),
        (common_pb2.Grammar(lark="a", markers=[""]), "has a string of 0 characters"),
        (common_pb2.Grammar(lark="a", markers=["x" * 65]), "has a string of 65 characters"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_grammar_is_held_against_its_limits(grammar: common_pb2.Grammar, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        Grammar.read(grammar)
    assert refused.value.field == "grammar"


def test_a_grammar_with_a_frame_is_read_as_it_is_written() -> None:
    framed = Grammar("regex", "a+", "start: marker_0 @text", (), ("<x>", "</x>"))
    assert Grammar.read(framed.write()) == framed
