"""Reads vLLM's GenerateRequest into submissions of the replica's own contract; what cannot be served is refused by the field's name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import TypeVar

from smg_grpc_proto import vllm_engine_pb2

from triserve.rpc.errors import InvalidRequest, PromptTooLong, ServiceError
from triserve.rpc.sampling import choice_seed
from triserve.v1 import common_pb2, compute_pb2

MAX_CHOICES = 128
_NO_IMAGES = "images and videos are not supported"
_NO_TRANSFER = "KV of other engines is not supported"
_REFUSED = {
    "mm_inputs": _NO_IMAGES,
    "extra_mm_inputs": _NO_IMAGES,
    "media_refs": _NO_IMAGES,
    "kv_transfer_params": _NO_TRANSFER,
    "kv_transfer_params_json": _NO_TRANSFER,
}
_REFUSED_PARAMETERS = {
    "truncate_prompt_tokens": "prompts are cut where they are tokenized",
    "structural_tag": "use json_schema, regex or grammar",
}
# The contract's fields that have another name in vLLM's.
_NAMES = {
    "token_ids": "input_ids",
    "stop_strings": "stop",
    "top_logprobs": "logprobs",
    "logit_bias_ids": "logit_bias",
    "logit_bias_values": "logit_bias",
}
# Zero is what these are where nobody sets them, and asks for nothing.
_SCALARS = ("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
_E = TypeVar("_E", bound=ServiceError)


def read_generate_request(
    message: vllm_engine_pb2.GenerateRequest, *, ends: Sequence[int], max_model_len_tokens: int, deadline_ms: int
) -> list[compute_pb2.SubmitRequest]:
    """One submission for each answer that is asked for, numbered by its index. Values are checked where they are submitted.

    Args:
        message: as it came.
        ends: ids that end an answer unless `ignore_eos`.
        max_model_len_tokens: most tokens of prompt and answer together; an answer without max_tokens may fill them.
        deadline_ms: for all of it; 0 = none.

    Raises:
        InvalidRequest: naming the field.
    """
    params = message.sampling_params
    _refuse_what_is_not_served(message, params)
    num_choices = params.n or 1
    if num_choices > MAX_CHOICES:
        raise InvalidRequest(f"n is {num_choices}, the limit is {MAX_CHOICES}", field="n")
    prompt = message.tokenized.input_ids
    room = max_model_len_tokens - len(prompt)
    if room < 1:
        raise PromptTooLong.of(got=len(prompt), limit=max_model_len_tokens - 1, field="input_ids")
    sampling, stopping = _sampling(params), _stopping(params, ends, room)
    submissions = []
    for index in range(num_choices):
        if index:
            # The prompt is the same: the first choice tells of it.
            sampling.ClearField("prompt_logprobs")
        sampling.seed = choice_seed(params.seed, index) if params.HasField("seed") else secrets.randbits(64)
        submissions.append(
            compute_pb2.SubmitRequest(
                request=index,
                request_id=message.request_id,
                token_ids=prompt,
                sampling=sampling,
                stopping=stopping,
                deadline_ms=deadline_ms,
            )
        )
    return submissions


def in_vllms_words(error: _E) -> _E:
    """The error with vLLM's name of the field at fault."""
    if (name := _NAMES.get(error.field)) is not None:
        error.message, error.field = error.message.replace(error.field, name), name
    return error


def _refuse_what_is_not_served(message: vllm_engine_pb2.GenerateRequest, params: vllm_engine_pb2.SamplingParams) -> None:
    if message.WhichOneof("input") != "tokenized":
        raise InvalidRequest(
            "text is not supported: the prompt must be tokenized", field="text" if message.HasField("text") else "tokenized"
        )
    for part, refused in ((message, _REFUSED), (params, _REFUSED_PARAMETERS)):
        for field, _ in part.ListFields():
            if field.name in refused:
                raise InvalidRequest(f"{field.name} is not supported: {refused[field.name]}", field=field.name)
    if message.data_parallel_rank:
        raise InvalidRequest(f"data_parallel_rank is {message.data_parallel_rank}, there is rank 0 alone", field="data_parallel_rank")
    for name in ("logprobs", "prompt_logprobs"):
        if (value := getattr(params, name)) < 0:
            raise InvalidRequest(f"{name} is {value}, the least is 0", field=name)
    if any(token < 0 for token in params.logit_bias):
        raise InvalidRequest(f"logit_bias has id {min(params.logit_bias)}, the least is 0", field="logit_bias")


def _sampling(params: vllm_engine_pb2.SamplingParams) -> common_pb2.SamplingParams:
    bias = sorted(params.logit_bias.items())
    return common_pb2.SamplingParams(
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_logprobs=params.logprobs if params.HasField("logprobs") else None,
        prompt_logprobs=params.prompt_logprobs if params.HasField("prompt_logprobs") else None,
        logit_bias_ids=[token for token, _ in bias],
        logit_bias_values=[value for _, value in bias],
        grammar=_grammar(params),
        **{name: value for name in _SCALARS if (value := getattr(params, name))},
    )


def _grammar(params: vllm_engine_pb2.SamplingParams) -> common_pb2.Grammar | None:
    """What the text must be; it is followed from the answer's first token, whether `grammar_from_first_token` is set or not."""
    kind = params.WhichOneof("constraint")
    if kind is None or (kind == "json_object" and not params.json_object):
        return None
    if params.min_tokens:
        raise InvalidRequest(f"min_tokens is {params.min_tokens}, and {kind} says when a text is whole", field="min_tokens")
    if kind == "json_object":
        return common_pb2.Grammar(json_schema='{"type":"object"}')
    if kind == "choice":
        if not params.choice.choices:
            raise InvalidRequest("choice has no choices", field="choice")
        return common_pb2.Grammar(lark=f"start: {' | '.join(map(json.dumps, params.choice.choices))}")
    if kind == "grammar":
        return common_pb2.Grammar(lark=params.grammar)
    return common_pb2.Grammar(regex=params.regex) if kind == "regex" else common_pb2.Grammar(json_schema=params.json_schema)


def _stopping(params: vllm_engine_pb2.SamplingParams, ends: Sequence[int], room: int) -> common_pb2.StoppingParams:
    # The answer ends at the model's context like at max_tokens, as vLLM has it.
    max_tokens = min(params.max_tokens, room) if params.HasField("max_tokens") else room
    return common_pb2.StoppingParams(
        max_tokens=max_tokens,
        min_tokens=params.min_tokens or None,
        stop_token_ids=sorted({*params.stop_token_ids, *(() if params.ignore_eos else ends)}),
        stop_strings=params.stop,
        # Text goes nowhere from here, and the one at its end says which stop string came.
        include_stop_string=True if params.stop else None,
        skip_special_tokens=params.skip_special_tokens,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
    )
