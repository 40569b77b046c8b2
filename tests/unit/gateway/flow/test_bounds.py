"""Every bound on a request is tried at the last value it allows and at the first two it does not, on both of its sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.flow.call import Call, Wishes
from gateway.flow.limits import Limits
from gateway.flow.resolve import check_prompt_ids, check_prompt_logprobs, check_shape, resolve_sampling, resolve_stopping
from gateway.flow.served_model import ServedModel
from triserve.rpc.errors import InvalidRequest
from triserve.v1 import tokenizer_pb2

LIMITS = Limits(
    max_n=5,
    max_prompts=7,
    max_choices=12,
    max_messages=9,
    max_template_arguments=3,
    max_stop_strings=4,
    max_stop_string_chars=6,
    max_stop_token_ids=8,
    max_logit_bias=300,
    max_top_logprobs=11,
    max_prompt_logprobs=1024,
)
MODEL = ServedModel(
    tokenizer_sha256="ab",
    weights_revision="cd",
    computation="float32 on cpu",
    eos_token_ids=(7,),
    default_temperature=None,
    default_top_k=None,
    default_top_p=None,
    has_chat_template=True,
    template_arguments=(),
    vocab_size=390,
    max_model_len_tokens=100,
    logits_width=400,
    serves_by_priority=False,
)
PROMPT_TOKENS = 40


def _shape(**fields: Any) -> None:
    check_shape(
        Call(**{"request_id": "x", "tenant": "t", "route": "chat", "model": "", "prompts": ((1,),), "prompt_field": "prompt", **fields}),
        LIMITS,
    )


def _chat(num_messages: int = 1, num_arguments: int = 0) -> None:
    chat = tokenizer_pb2.ChatInput(
        messages=[tokenizer_pb2.ChatMessage()] * num_messages, template_arguments=[tokenizer_pb2.TemplateArgument()] * num_arguments
    )
    _shape(prompts=(tokenizer_pb2.EncodeRequest(chat=chat),), prompt_field="messages")


def _sampled(**wishes: Any) -> None:
    resolve_sampling(Wishes(**wishes), MODEL, LIMITS)


def _stopped(*, prompt_tokens: int = PROMPT_TOKENS, **wishes: Any) -> None:
    resolve_stopping(Wishes(**wishes), MODEL, LIMITS, prompt_tokens=prompt_tokens, prompt_field="prompt", default_max_tokens=None)


def _told(num_tokens: int) -> None:
    call = Call(
        request_id="x",
        tenant="t",
        route="completions",
        model="",
        prompts=((1,),),
        prompt_field="prompt",
        n=2,
        wishes=Wishes(prompt_logprobs=3),
    )
    check_prompt_logprobs(call, num_tokens, LIMITS)


# What is bounded, the field an error names, the lowest and the highest value; None = that side has no bound of its own.
BOUNDS: dict[str, tuple[Callable[[int], None], str, int | None, int | None]] = {
    "n": (lambda n: _shape(n=n), "n", 1, 5),
    "prompts": (lambda count: _shape(prompts=((1,),) * count), "prompt", 1, 7),
    "tokens of a prompt": (lambda count: _shape(prompts=((1,) * count,)), "prompt", 1, None),
    "answers": (
        lambda count: _shape(prompts=((1,),) * (count // 2), n=2) if count % 2 == 0 else _shape(prompts=((1,),) * 7, n=2),
        "n",
        None,
        12,
    ),
    "messages": (lambda count: _chat(num_messages=count), "messages", None, 9),
    "template arguments": (lambda count: _chat(num_arguments=count), "chat_template_kwargs", 0, 3),
    "seed": (lambda seed: _sampled(seed=seed), "seed", -(2**63), 2**64 - 1),
    "top_k": (lambda top_k: _sampled(top_k=top_k), "top_k", None, 2**32 - 1),
    "top_logprobs": (lambda count: _sampled(top_logprobs=count), "top_logprobs", 0, 11),
    "prompt_logprobs": (lambda count: _sampled(prompt_logprobs=count), "prompt_logprobs", 0, 11),
    "tokens of prompts to tell of": (_told, "prompt_logprobs", None, 128),
    "entries of logprob_token_ids": (
        lambda count: _sampled(top_logprobs=0, logprob_token_ids=tuple(range(count))),
        "logprob_token_ids",
        0,
        128,
    ),
    "id to report": (lambda token: _sampled(top_logprobs=0, logprob_token_ids=(token,)), "logprob_token_ids", 0, 399),
    "entries of logit_bias": (lambda count: _sampled(logit_bias=tuple((token, 1.0) for token in range(count))), "logit_bias", 0, 300),
    "id in logit_bias": (lambda token: _sampled(logit_bias=((token, 1.0),)), "logit_bias", 0, 399),
    "value in logit_bias": (lambda value: _sampled(logit_bias=((1, float(value)),)), "logit_bias", -100, 100),
    "max_tokens": (lambda count: _stopped(max_tokens=count), "max_tokens", 1, 100 - PROMPT_TOKENS),
    "max_tokens where a prompt is told of": (
        lambda count: _stopped(max_tokens=count, prompt_logprobs=0),
        "max_tokens",
        0,
        100 - PROMPT_TOKENS,
    ),
    "max_tokens that may be none": (lambda count: _stopped(max_tokens=count, may_be_empty=True), "max_tokens", 0, 100 - PROMPT_TOKENS),
    "min_tokens": (lambda count: _stopped(min_tokens=count), "min_tokens", 0, 100 - PROMPT_TOKENS),
    "min_tokens with max_tokens": (lambda count: _stopped(min_tokens=count, max_tokens=5), "min_tokens", 0, 5),
    "tokens of an encoded prompt": (lambda count: _stopped(prompt_tokens=count), "prompt", None, 99),
    "stop token ids": (lambda count: _stopped(stop_token_ids=tuple(range(count))), "stop_token_ids", 0, 8),
    "stop token id": (lambda token: _stopped(stop_token_ids=(token,)), "stop_token_ids", 0, 399),
    "stop strings": (lambda count: _stopped(stop_strings=("x",) * count), "stop", 0, 4),
    "characters of a stop string": (lambda count: _stopped(stop_strings=("x" * count,)), "stop", 1, 6),
    "id in a prompt": (lambda token: check_prompt_ids([token], Wishes(), MODEL, field="prompt"), "prompt", 0, 399),
    "ids of a prompt": (lambda count: check_prompt_ids([1] * count, Wishes(), MODEL, field="prompt"), "prompt", None, 99),
    "ids of a prompt that nothing follows": (
        lambda count: check_prompt_ids([1] * count, Wishes(max_tokens=0), MODEL, field="prompt"),
        "prompt",
        None,
        100,
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_the_last_value_is_allowed_and_the_next_is_refused_by_name(name: str) -> None:
    check, field, lowest, highest = BOUNDS[name]
    for last, step in ((lowest, -1), (highest, 1)):
        if last is None:
            continue
        check(last)
        if last + 2 * step < 0 and name.startswith(("entries", "stop token ids", "stop strings", "template")):
            continue
        for refused in (last + step, last + 2 * step):
            with pytest.raises(InvalidRequest) as caught:
                check(refused)
            assert caught.value.field == field


def test_every_count_among_the_limits_is_tried_here() -> None:
    changed = {name for name in Limits.model_fields if getattr(LIMITS, name) != getattr(Limits(), name)}
    elsewhere = {"max_body_bytes", "max_json_depth", "max_json_values", "max_json_items", "max_rewrite_tokens", "max_contrastive_tokens"}
    assert changed | elsewhere == {name for name in Limits.model_fields if name.startswith("max_")}


def test_an_answer_of_one_token_fits_where_exactly_one_does() -> None:
    one = replace(MODEL, max_model_len_tokens=2)
    stopping = resolve_stopping(Wishes(max_tokens=1), one, LIMITS, prompt_tokens=1, prompt_field="prompt", default_max_tokens=None)
    assert stopping.max_tokens == 1
