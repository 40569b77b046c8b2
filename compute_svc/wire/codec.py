"""What the two processes of a replica say to each other, to bytes and back; see engine_wire.proto."""

from __future__ import annotations

import struct

import numpy as np
from google.protobuf.message import Message

from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.request import Request, SamplingOptions, Tokens
from compute_svc.wire.step_output import KvChanges, Load, Pinned, PrefixStats, Released, Rows, Started, StepOutput
from triserve.rpc.errors import from_proto, to_proto
from triserve.v1 import compute_pb2

_LENGTH = struct.Struct("<I")
# Stands for a token that is to be drawn from candidates.
_NOT_DRAWN = -1


def pack(message: Message) -> bytes:
    """The message with its length before it."""
    content = message.SerializeToString()
    return _LENGTH.pack(len(content)) + content


class MessageCutter:
    """Cuts what arrives on a stream into the messages that were packed."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    @property
    def is_between_messages(self) -> bool:
        """Whether no part of a message waits for the rest."""
        return not self._waiting

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete."""
        self._waiting += data
        messages = []
        start = 0
        while len(self._waiting) - start >= _LENGTH.size:
            content = start + _LENGTH.size
            end = content + _LENGTH.unpack_from(self._waiting, start)[0]
            if end > len(self._waiting):
                break
            messages.append(bytes(self._waiting[content:end]))
            start = end
        del self._waiting[:start]
        return messages


def encode_tokens(tokens: Tokens) -> bytes:
    """Ids, none below 0, as they travel to the engine: little-endian uint32, half of what they are in memory."""
    return tokens.astype("<u4").tobytes()


def decode_tokens(content: bytes) -> Tokens:
    """The inverse of `encode_tokens`."""
    return np.frombuffer(content, dtype="<u4").astype(np.int64)


def encode_request(request: Request) -> wire.Submission:
    """A request as it travels to the engine."""
    sampling = request.sampling
    return wire.Submission(
        number=request.number,
        tenant=request.tenant,
        prompt=encode_tokens(request.prompt),
        generated=encode_tokens(request.generated),
        max_tokens=request.max_tokens,
        submitted_at=request.submitted_at,
        min_tokens=request.min_tokens,
        stop_token_ids=request.stop_token_ids,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        bias_ids=sampling.bias_ids,
        top_logprobs=sampling.top_logprobs,
        deadline=request.deadline,
        priority=request.priority,
        pins=request.pins,
    )


def decode_request(message: wire.Submission) -> Request:
    """The inverse of `encode_request`."""
    return Request(
        number=message.number,
        tenant=message.tenant,
        prompt=decode_tokens(message.prompt),
        generated=decode_tokens(message.generated),
        max_tokens=message.max_tokens,
        submitted_at=message.submitted_at,
        min_tokens=message.min_tokens,
        stop_token_ids=frozenset(message.stop_token_ids),
        sampling=SamplingOptions(
            temperature=message.temperature,
            top_k=message.top_k if message.HasField("top_k") else None,
            top_p=message.top_p,
            min_p=message.min_p,
            repetition_penalty=message.repetition_penalty,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            bias_ids=tuple(message.bias_ids),
            top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None,
        ),
        deadline=message.deadline if message.HasField("deadline") else None,
        priority=message.priority,
        pins=message.pins,
    )


def encode_output(output: StepOutput, ended_at: float) -> wire.Output:
    """A step's output as it travels from the engine.

    Args:
        output: Of the step.
        ended_at: When, on the monotonic clock.
    """
    return wire.Output(
        rows=None if output.rows is None else _encode_rows(output.rows),
        started=[
            wire.Started(
                request=item.number, cached_tokens=item.cached_tokens, submitted_at=item.submitted_at, admitted_at=item.admitted_at
            )
            for item in output.started
        ],
        released=[
            wire.Released(request=item.number, preemptions=item.preemptions, error=None if item.error is None else to_proto(item.error))
            for item in output.released
        ],
        load=output.load,
        ended_at=ended_at,
        pinned=[wire.Pinned(**item._asdict()) for item in output.pinned],
        kv_changes=None if output.kv_changes is None else wire.KvChanges(**output.kv_changes._asdict()),
    )


def decode_output(message: wire.Output) -> StepOutput:
    """The inverse of `encode_output`, without the time."""
    return StepOutput(
        _decode_rows(message.rows) if message.HasField("rows") else None,
        [Started(item.request, item.cached_tokens, item.submitted_at, item.admitted_at) for item in message.started],
        [Released(item.request, item.preemptions, from_proto(item.error) if item.HasField("error") else None) for item in message.released],
        Load(*message.load),
        [Pinned(item.number, item.tokens, item.computed_tokens) for item in message.pinned],
        _decode_kv_changes(message.kv_changes) if message.HasField("kv_changes") else None,
    )


def encode_stats(number: int, stats: PrefixStats) -> wire.PrefixStats:
    """What the prefix cache holds, as an answer to a call."""
    *counts, pins = stats
    return wire.PrefixStats(
        number=number,
        counts=counts,
        pins=[compute_pb2.PinnedPrefix(tenant=tenant, tokens=tokens, hash=last) for tenant, tokens, last in pins],
    )


def decode_stats(message: wire.PrefixStats) -> PrefixStats:
    """The inverse of `encode_stats`, without the number."""
    return PrefixStats._make([*message.counts, [(pin.tenant, pin.tokens, pin.hash) for pin in message.pins]])


def _decode_kv_changes(message: wire.KvChanges) -> KvChanges:
    return KvChanges(message.is_reset, list(message.stored), list(message.removed))


def _encode_rows(rows: Rows) -> wire.Rows:
    return wire.Rows(
        request=rows.numbers,
        position=rows.positions,
        token=[_NOT_DRAWN if token is None else token for token in rows.tokens],
        num_candidates=rows.num_candidates,
        log_sum_exp=rows.log_sum_exp,
        candidate_ids=rows.candidate_ids.astype("<u4", copy=False).tobytes(),
        candidate_logits=rows.candidate_logits.astype("<f4", copy=False).tobytes(),
    )


def _decode_rows(message: wire.Rows) -> Rows:
    return Rows(
        list(message.request),
        list(message.position),
        [None if token == _NOT_DRAWN else token for token in message.token],
        list(message.num_candidates),
        list(message.log_sum_exp),
        np.frombuffer(message.candidate_ids, dtype="<u4"),
        np.frombuffer(message.candidate_logits, dtype="<f4"),
    )
