"""Which answers have a name in the prompt cache, and that every parameter is part of it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from gateway.flow.answer_cache import AnswerCache
from gateway.flow.call import Call, Wishes
from gateway.flow.generations.generation import Choice, EncodedPrompt
from prompt_cache import CacheConfig, CacheKey, PromptCache
from tests.fakes.fake_stages import MODEL
from tests.unit.gateway.flow.changed_fields import with_field
from triserve.v1 import common_pb2

CACHE = AnswerCache(PromptCache(CacheConfig(redis_url=None, secret=b"0123456789abcdef")), None, "tiny")
PROMPT = EncodedPrompt(token_ids=[1, 2], system_tokens=0, encode_us=0)
DRAWN: dict[str, Any] = {"temperature": 0.5, "seed": 7}


def key(sampling: common_pb2.SamplingParams, stopping: common_pb2.StoppingParams | None = None, **wishes: Any) -> CacheKey | None:
    call = Call(request_id="x", tenant="t", route="chat", model="", prompts=((1, 2),), prompt_field="prompt", wishes=Wishes(**wishes))
    chosen = stopping or common_pb2.StoppingParams(max_tokens=9)
    return CACHE.key(call, MODEL, Choice(number=0, prompt=PROMPT, prompt_index=0, sampling=sampling, stopping=chosen), 0)


@pytest.mark.parametrize("field", [*common_pb2.SamplingParams.DESCRIPTOR.fields], ids=lambda field: field.name)
def test_another_value_of_any_sampling_parameter_is_another_answer(field: FieldDescriptor) -> None:
    plain = common_pb2.SamplingParams(**DRAWN)
    assert key(plain, seed=7) is not None
    assert key(with_field(plain, field), seed=7) != key(plain, seed=7)


@pytest.mark.parametrize("field", [*common_pb2.StoppingParams.DESCRIPTOR.fields], ids=lambda field: field.name)
def test_another_value_of_any_stopping_parameter_is_another_answer(field: FieldDescriptor) -> None:
    plain, stopping = common_pb2.SamplingParams(temperature=0), common_pb2.StoppingParams(max_tokens=9)
    assert key(plain, with_field(stopping, field)) != key(plain, stopping)


def test_words_that_differ_in_where_one_ends_are_other_answers() -> None:
    words = [[[1, 2], [3]], [[1], [2, 3]], [[1, 2, 3]]]
    keys = {
        key(common_pb2.SamplingParams(temperature=0, bad_words=[common_pb2.TokenSequence(token_ids=ids) for ids in one])) for one in words
    }
    assert len(keys) == 3


RULES: dict[str, Any] = {"dry_multiplier": 1, "dry_breaker_ids": [3], "allowed_token_ids": [4], "banned_token_ids": [5]}


def test_a_greedy_answer_is_determined_whatever_rules_it_has_and_a_drawn_one_by_a_seed() -> None:
    assert key(common_pb2.SamplingParams(temperature=0, seed=1, **RULES)) == key(common_pb2.SamplingParams(temperature=0, seed=2, **RULES))
    drawn = common_pb2.SamplingParams(xtc_probability=0.5, **DRAWN, **RULES)
    assert key(drawn) is None, "the seed is not the client's"
    assert key(drawn, seed=7) is not None
