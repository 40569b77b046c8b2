"""Messages of the contract to and from what the sampler works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sampler_svc.logprobs import PromptPart, RowLogprobs, TextLogprob, TopToken
from sampler_svc.request_state import Delta, Finish
from sampler_svc.session import Frame, Outcome
from sampler_svc.text.vocabulary import Vocabulary
from triserve.rpc import limits
from triserve.rpc.errors import InvalidRequest, to_proto
from triserve.rpc.sampling import check_ids
from triserve.v1 import common_pb2, sampler_pb2

_FINISH_REASONS = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: common_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: common_pb2.FINISH_REASON_LENGTH,
}


def read_frame(message: sampler_pb2.SampleRequest, logits_width: int) -> Frame:
    """Reads one frame; requests that open are checked later, each on its own.

    Raises:
        InvalidRequest: the columns are malformed, and with them the stream.
    """
    if message.HasField("hello"):
        raise InvalidRequest("hello is in a message that is not the first", field="hello")
    request, position, token = list(message.request), list(message.position), list(message.token)
    num_tokens = list(message.num_tokens) or [1] * len(request)
    for field, column in (("position", position), ("num_tokens", num_tokens)):
        if len(column) != len(request):
            raise InvalidRequest(f"{field} has {len(column)} entries, request has {len(request)}", field=field)
    if len(token) != sum(num_tokens):
        raise InvalidRequest(f"token has {len(token)} entries, num_tokens says {sum(num_tokens)}", field="token")
    check_ids("token", token, logits_width)
    ends = list(accumulate(num_tokens))
    return Frame(
        number=message.frame,
        opens=list(message.open),
        closes=list(message.close),
        request=request,
        position=position,
        tokens=[token[end - count : end] for end, count in zip(ends, num_tokens, strict=True)],
        logprobs={one.row: _read_logprobs(one, num_tokens, logits_width) for one in _by_row(message.logprobs, "logprobs", len(request))},
        logits=_read_logits(message, num_tokens, logits_width),
        prompts=[_read_prompt(one, logits_width) for one in message.prompt_logprobs],
        computed=list(message.computed),
    )


_OfRow = TypeVar("_OfRow", sampler_pb2.RowLogprobs, sampler_pb2.RowLogits)


def _by_row(column: Iterable[_OfRow], field: str, num_rows: int) -> Iterator[_OfRow]:
    """The entries of a column that has some rows, which must rise."""
    least = 0
    for one in column:
        if not least <= one.row < num_rows:
            raise InvalidRequest(f"{field} has row {one.row} out of its order, or there are only {num_rows} rows", field=field)
        least = one.row + 1
        yield one


def _read_logprobs(message: sampler_pb2.RowLogprobs, num_tokens: Sequence[int], logits_width: int) -> RowLogprobs:
    count, num_top = num_tokens[message.row], len(message.top_token)
    if not count or len(message.logprob) != count:
        raise InvalidRequest(f"logprobs has {len(message.logprob)} entries for a row of {count} tokens", field="logprobs")
    if len(message.top_logprob) != num_top or num_top % count:
        raise InvalidRequest(
            f"logprobs has {num_top} top_token and {len(message.top_logprob)} top_logprob for a row of {count} tokens", field="logprobs"
        )
    check_ids("logprobs", message.top_token, logits_width)
    if len(message.named_logprob) % count:
        raise InvalidRequest(f"logprobs has {len(message.named_logprob)} named_logprob for a row of {count} tokens", field="logprobs")
    return RowLogprobs(list(message.logprob), list(message.top_token), list(message.top_logprob), tuple(message.named_logprob))


def _read_prompt(message: sampler_pb2.PromptLogprobs, logits_width: int) -> PromptPart:
    count, num_top = len(message.logprob), len(message.top_token)
    if count > limits.MAX_TOLD_TOKENS:
        raise InvalidRequest(f"prompt_logprobs has {count} tokens, the limit is {limits.MAX_TOLD_TOKENS}", field="prompt_logprobs")
    if not count or len(message.rank) != count:
        raise InvalidRequest(f"prompt_logprobs has {len(message.rank)} rank for {count} logprob", field="prompt_logprobs")
    if len(message.top_logprob) != num_top or num_top % count:
        raise InvalidRequest(
            f"prompt_logprobs has {num_top} top_token and {len(message.top_logprob)} top_logprob for {count} tokens",
            field="prompt_logprobs",
        )
    check_ids("prompt_logprobs", message.top_token, logits_width)
    return PromptPart(
        message.request,
        message.first_position,
        list(message.logprob),
        list(message.rank),
        list(message.top_token),
        list(message.top_logprob),
    )


def _read_logits(message: sampler_pb2.SampleRequest, num_tokens: Sequence[int], logits_width: int) -> dict[int, NDArray[np.float32]]:
    logits = {}
    for one in _by_row(message.logits, "logits", len(num_tokens)):
        if len(one.logits) != 4 * logits_width:
            raise InvalidRequest(
                f"logits has {len(one.logits)} bytes for a row, {logits_width} logits have {4 * logits_width}", field="logits"
            )
        if num_tokens[one.row] > 1:
            raise InvalidRequest(
                f"logits has row {one.row}, which has {num_tokens[one.row]} tokens; one can be drawn again", field="logits"
            )
        logits[one.row] = np.frombuffer(one.logits, "<f4")
    missing = [row for row, count in enumerate(num_tokens) if not count and row not in logits]
    if missing:
        raise InvalidRequest(f"logits has no row {missing[0]}, which has no token", field="logits")
    return logits


def write_outcome(outcome: Outcome, frame: int, vocabulary: Vocabulary) -> sampler_pb2.SampleResponse:
    """The answer to all frames up to a number."""
    by_gateway: dict[int, list[Delta]] = {}
    for delta in outcome.deltas.values():
        if not delta.is_empty:
            by_gateway.setdefault(delta.gateway, []).append(delta)
    return sampler_pb2.SampleResponse(
        frame=frame,
        request=[verdict.request for verdict in outcome.verdicts],
        position=[verdict.position for verdict in outcome.verdicts],
        token=[verdict.token for verdict in outcome.verdicts],
        finished=outcome.finished,
        failed=[sampler_pb2.SampleFailure(request=request, error=to_proto(error)) for request, error in outcome.failed],
        parcels=[
            sampler_pb2.Parcel(gateway=gateway, delta_frame=_write_deltas(deltas, vocabulary).SerializeToString())
            for gateway, deltas in by_gateway.items()
        ],
        masks=[sampler_pb2.RowMask(**mask._asdict()) for mask in outcome.masks.values()],
    )


def _write_deltas(deltas: list[Delta], vocabulary: Vocabulary) -> sampler_pb2.DeltaFrame:
    of_prompts = any(delta.prompt_logprobs for delta in deltas)
    return sampler_pb2.DeltaFrame(
        request=[delta.gateway_request for delta in deltas],
        epoch=[delta.epoch for delta in deltas],
        first_position=[delta.first_position for delta in deltas],
        num_tokens=[len(delta.tokens) for delta in deltas],
        text=[delta.text for delta in deltas],
        finish_reason=[_FINISH_REASONS[delta.finish] for delta in deltas],
        token=[token for delta in deltas for token in delta.tokens],
        logprobs=_write_logprobs((entry for delta in deltas for entry in delta.logprobs), vocabulary),
        num_logprobs=[len(delta.logprobs) for delta in deltas],
        prompt_logprobs=_write_logprobs((entry for delta in deltas for entry in delta.prompt_logprobs), vocabulary),
        num_prompt_logprobs=[len(delta.prompt_logprobs) for delta in deltas] if of_prompts else (),
        first_prompt_position=[delta.first_prompt_position for delta in deltas] if of_prompts else (),
    )


def _write_logprobs(entries: Iterable[TextLogprob], vocabulary: Vocabulary) -> list[sampler_pb2.TokenLogprobs]:
    return [
        sampler_pb2.TokenLogprobs(
            logprob=one.entry.logprob,
            token_bytes=one.added,
            top=_write_tokens(one.entry.top, vocabulary),
            token=one.entry.token,
            text=one.text,
            text_offset=one.offset,
            rank=one.entry.rank,
            named=_write_tokens(one.entry.named, vocabulary),
        )
        for one in entries
    ]


def _write_tokens(tokens: Iterable[TopToken], vocabulary: Vocabulary) -> list[sampler_pb2.TopLogprob]:
    return [sampler_pb2.TopLogprob(token=one.token, logprob=one.logprob, token_bytes=vocabulary.own_bytes(one.token)) for one in tokens]
