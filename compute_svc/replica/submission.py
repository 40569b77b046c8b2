"""Reads a submission off the wire: every field checked against the contract's range, nothing assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from compute_svc.wire.request import Request, SamplingOptions, Tokens
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest, PromptTooLong
from triserve.v1 import common_pb2, compute_pb2

MAX_NAME_CHARS = 256
MAX_STOP_TOKEN_IDS = 1 << 14


class _Parameter(NamedTuple):
    """A scalar of the sampling parameters."""

    allowed: limits.Range
    # What an unset field means.
    unset: float


_PARAMETERS = {
    "temperature": _Parameter(limits.TEMPERATURE, 1),
    "top_p": _Parameter(limits.TOP_P, 1),
    "min_p": _Parameter(limits.MIN_P, 0),
    "repetition_penalty": _Parameter(limits.REPETITION_PENALTY, 1),
    "presence_penalty": _Parameter(limits.PRESENCE_PENALTY, 0),
    "frequency_penalty": _Parameter(limits.FREQUENCY_PENALTY, 0),
}


def read_submission(message: compute_pb2.SubmitRequest, *, number: int, logits_width: int, max_request_tokens: int, now: float) -> Request:
    """The request a gateway submitted. Counts are checked before the work that grows with them.

    Args:
        message: As it came.
        number: For the engine.
        logits_width: Every token id must be below it.
        max_request_tokens: Most tokens of prompt and answer together.
        now: Seconds on the clock that deadlines are kept on.

    Raises:
        InvalidRequest: naming the first field that is out of its range.
    """
    for field, name in (("tenant", message.tenant), ("request_id", message.request_id)):
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequest(f"{field} has {len(name)} characters, the limit is {MAX_NAME_CHARS}", field=field)
    if len(message.token_ids) >= max_request_tokens:
        raise PromptTooLong.of(got=len(message.token_ids), limit=max_request_tokens - 1, field="token_ids")
    prompt = _ids("token_ids", message.token_ids, logits_width, max_request_tokens)
    if not prompt.size:
        raise InvalidRequest("token_ids is empty, it must have at least one id", field="token_ids")
    if message.system_tokens > prompt.size:
        raise InvalidRequest(f"system_tokens is {message.system_tokens}, the prompt has {prompt.size} tokens", field="system_tokens")
    limits.PRIORITY.check("priority", message.priority)
    stopping = message.stopping
    if not stopping.HasField("max_tokens"):
        raise InvalidRequest("max_tokens is not set", field="max_tokens")
    if stopping.max_tokens < 1:
        raise InvalidRequest("max_tokens is 0, it must be at least 1", field="max_tokens")
    return Request(
        number=number,
        tenant=message.tenant,
        prompt=prompt,
        generated=_ids("generated_token_ids", message.generated_token_ids, logits_width, max_request_tokens),
        max_tokens=stopping.max_tokens,
        submitted_at=now,
        min_tokens=stopping.min_tokens,
        stop_token_ids=frozenset(_ids("stop_token_ids", stopping.stop_token_ids, logits_width, MAX_STOP_TOKEN_IDS).tolist()),
        sampling=_read_sampling(message.sampling, logits_width),
        deadline=now + message.deadline_ms / 1000 if message.deadline_ms else None,
        priority=message.priority,
    )


def read_prefix(
    message: compute_pb2.PinPrefixRequest | compute_pb2.UnpinPrefixRequest,
    *,
    logits_width: int,
    page_size_tokens: int,
    max_request_tokens: int,
) -> Tokens:
    """The whole pages of a prefix that somebody wants to keep, [n * page_size_tokens].

    Raises:
        InvalidRequest: It has no whole page, more tokens than a request may have, or an id that is out of range.
    """
    if len(message.tenant) > MAX_NAME_CHARS:
        raise InvalidRequest(f"tenant has {len(message.tenant)} characters, the limit is {MAX_NAME_CHARS}", field="tenant")
    tokens = _ids("token_ids", message.token_ids, logits_width, max_request_tokens)
    whole = tokens[: tokens.size // page_size_tokens * page_size_tokens]
    if not whole.size:
        raise InvalidRequest(f"token_ids has {tokens.size} ids, it must have a page at least, {page_size_tokens}", field="token_ids")
    return whole


def _read_sampling(sampling: common_pb2.SamplingParams, logits_width: int) -> SamplingOptions:
    values = {name: _in_range(name, sampling) for name in _PARAMETERS}
    if sampling.HasField("top_k") and sampling.top_k < 1:
        raise InvalidRequest("top_k is 0, it must be at least 1", field="top_k")
    if values["temperature"] > 0 and not sampling.HasField("seed"):
        raise InvalidRequest("seed is not set, and a temperature above 0 needs one", field="seed")
    if sampling.top_logprobs > limits.MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs is {sampling.top_logprobs}, the limit is {limits.MAX_TOP_LOGPROBS}", field="top_logprobs")
    return SamplingOptions(
        **values,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        bias_ids=_read_biases(sampling.logit_bias_ids, sampling.logit_bias_values, logits_width),
        top_logprobs=sampling.top_logprobs if sampling.HasField("top_logprobs") else None,
    )


def _in_range(name: str, sampling: common_pb2.SamplingParams) -> float:
    parameter = _PARAMETERS[name]
    if not sampling.HasField(name):  # type: ignore[arg-type]  # the table holds names of the message's own fields
        return parameter.unset
    value = float(getattr(sampling, name))
    parameter.allowed.check(name, value)
    return value


def _read_biases(ids: Sequence[int], amounts: Sequence[float], logits_width: int) -> tuple[int, ...]:
    """The biased ids; their values are the sampler's affair once they are known to be right."""
    biased = tuple(_ids("logit_bias_ids", ids, logits_width, limits.MAX_LOGIT_BIAS).tolist())
    if len(set(biased)) != len(biased):
        raise InvalidRequest("logit_bias_ids has an id twice", field="logit_bias_ids")
    if len(amounts) != len(biased):
        raise InvalidRequest(f"logit_bias_values has {len(amounts)} values for {len(biased)} ids", field="logit_bias_values")
    for amount in amounts:
        limits.LOGIT_BIAS.check("logit_bias_values", amount)
    return biased


def _ids(field: str, ids: Sequence[int], logits_width: int, most: int) -> Tokens:
    if len(ids) > most:
        raise InvalidRequest(f"{field} has {len(ids)} ids, the limit is {most}", field=field)
    array = np.fromiter(ids, dtype=np.int64, count=len(ids))
    if array.size and int(array.max()) >= logits_width:
        raise InvalidRequest(f"{field} has id {int(array.max())}, the limit is {logits_width - 1}", field=field)
    return array
