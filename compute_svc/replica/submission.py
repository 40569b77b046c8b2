"""Reads a submission off the wire: every field checked against the contract's range, nothing assumed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compute_svc.wire.request import HiddenStates, Request, Tokens
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest, PromptTooLong
from triserve.rpc.sampling import Sampling, Stopping
from triserve.v1 import compute_pb2

MAX_NAME_CHARS = 256


def read_submission(
    message: compute_pb2.SubmitRequest, *, number: int, logits_width: int, hidden_size: int, max_request_tokens: int, now: float
) -> Request:
    """The request a gateway submitted. Counts are checked before the work that grows with them.

    Args:
        message: As it came.
        number: For the engine.
        logits_width: Every token id must be below it.
        hidden_size: Of vectors of hidden states; 0 = there are none to be had.
        max_request_tokens: Most tokens of prompt and answer together.
        now: Seconds on the clock that deadlines are kept on.

    Raises:
        InvalidRequest: naming the first field that is out of its range.
    """
    for field, name in (("tenant", message.tenant), ("request_id", message.request_id)):
        if len(name) > MAX_NAME_CHARS:
            raise InvalidRequest(f"{field} has {len(name)} characters, the limit is {MAX_NAME_CHARS}", field=field)
    most = max_request_tokens - (message.stopping.max_tokens > 0)
    if len(message.token_ids) > most:
        raise PromptTooLong.of(got=len(message.token_ids), limit=most, field="token_ids")
    prompt = _ids("token_ids", message.token_ids, logits_width, max_request_tokens)
    if not prompt.size:
        raise InvalidRequest("token_ids is empty, it must have at least one id", field="token_ids")
    if message.system_tokens > prompt.size:
        raise InvalidRequest(f"system_tokens is {message.system_tokens}, the prompt has {prompt.size} tokens", field="system_tokens")
    limits.PRIORITY.check("priority", message.priority)
    stopping = Stopping.read(message.stopping, logits_width)
    assert stopping.max_tokens is not None, "checked"
    return Request(
        number=number,
        tenant=message.tenant,
        prompt=prompt,
        generated=_ids("generated_token_ids", message.generated_token_ids, logits_width, max_request_tokens),
        max_tokens=stopping.max_tokens,
        submitted_at=now,
        min_tokens=stopping.min_tokens,
        stop_token_ids=stopping.stop_token_ids,
        sampling=Sampling.read(message.sampling, logits_width),
        deadline=now + message.deadline_ms / 1000 if message.deadline_ms else None,
        priority=message.priority,
        hidden_states=_hidden_states(message.hidden_states, hidden_size),
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


def _hidden_states(value: int, hidden_size: int) -> HiddenStates:
    try:
        wanted = HiddenStates(value)
    except ValueError:
        raise InvalidRequest(f"hidden_states is {value}, which is none", field="hidden_states") from None
    if wanted is not HiddenStates.NONE and not hidden_size:
        raise InvalidRequest("hidden_states is set, and this replica gives none", field="hidden_states")
    return wanted


def _ids(field: str, ids: Sequence[int], logits_width: int, most: int) -> Tokens:
    if len(ids) > most:
        raise InvalidRequest(f"{field} has {len(ids)} ids, the limit is {most}", field=field)
    array = np.fromiter(ids, dtype=np.int64, count=len(ids))
    if array.size and int(array.max()) >= logits_width:
        raise InvalidRequest(f"{field} has id {int(array.max())}, the limit is {logits_width - 1}", field=field)
    return array
