"""Messages of the contract to and from what the sampler works with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sampler_svc.candidate_rows import CandidateRows
from sampler_svc.logprobs import TextLogprob
from sampler_svc.request_state import Delta, Finish, Opening
from sampler_svc.session import Frame, Kind, Outcome
from sampler_svc.vocabulary import Vocabulary
from triserve.rpc.errors import InvalidRequest, to_proto
from triserve.rpc.sampling import Sampling, Stopping
from triserve.v1 import common_pb2, sampler_pb2

_KINDS = {sampler_pb2.ROW_KIND_DRAWN: Kind.DRAWN, sampler_pb2.ROW_KIND_CANDIDATES: Kind.CANDIDATES}
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
    request, token = list(message.request), list(message.token)
    counts = list(message.num_candidates)
    for field in ("position", "kind", "token", "log_sum_exp", "num_candidates"):
        if len(getattr(message, field)) != len(request):
            raise InvalidRequest(f"{field} has {len(getattr(message, field))} entries, request has {len(request)}", field=field)
    kinds = []
    for kind in message.kind:
        if kind not in _KINDS:
            raise InvalidRequest(f"kind has {kind}, which is no kind of row", field="kind")
        kinds.append(_KINDS[kind])
    if token and max(token) >= logits_width:
        raise InvalidRequest(f"token has id {max(token)}, the limit is {logits_width - 1}", field="token")
    return Frame(
        number=message.frame,
        opens=[_read_open(opening) for opening in message.open],
        closes=list(message.close),
        request=request,
        position=list(message.position),
        kind=kinds,
        token=token,
        log_sum_exp=np.array(message.log_sum_exp, np.float64),
        candidates=CandidateRows.parse(message.candidate_ids, message.candidate_logits, counts, logits_width),
    )


def _read_open(message: sampler_pb2.OpenRequest) -> Opening:
    return Opening(
        request=message.request,
        gateway=message.gateway,
        gateway_request=message.gateway_request,
        epoch=message.epoch,
        request_id=message.request_id,
        prompt_token_ids=message.prompt_token_ids,
        generated_token_ids=message.generated_token_ids,
        sampling=_read_sampling(message.sampling),
        stopping=_read_stopping(message.stopping),
    )


def _read_sampling(message: common_pb2.SamplingParams) -> Sampling:
    # `Sampling` has the contract's names, and a default exactly where an unset field has a meaning.
    set_fields: dict[str, Any] = {descriptor.name: value for descriptor, value in message.ListFields()}
    set_fields["logit_bias_ids"] = tuple(message.logit_bias_ids)
    set_fields["logit_bias_values"] = tuple(message.logit_bias_values)
    return Sampling(**set_fields)


def _read_stopping(message: common_pb2.StoppingParams) -> Stopping:
    return Stopping(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        min_tokens=message.min_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        stop_strings=tuple(message.stop_strings),
    )


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
    )


def _write_deltas(deltas: list[Delta], vocabulary: Vocabulary) -> sampler_pb2.DeltaFrame:
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
    )


def _write_logprobs(entries: Iterable[TextLogprob], vocabulary: Vocabulary) -> list[sampler_pb2.TokenLogprobs]:
    return [
        sampler_pb2.TokenLogprobs(
            logprob=one.entry.logprob,
            token_bytes=one.added,
            top=[
                sampler_pb2.TopLogprob(token=top.token, logprob=top.logprob, token_bytes=vocabulary.own_bytes(top.token))
                for top in one.entry.top
            ],
            token=one.entry.token,
            text=one.text,
            text_offset=one.offset,
        )
        for one in entries
    ]
