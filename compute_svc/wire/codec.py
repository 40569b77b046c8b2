"""What the two processes of a replica say to each other, to bytes and back; see engine_wire.proto."""

from __future__ import annotations

import struct

import numpy as np
from google.protobuf.message import Message

from compute_svc.wire import engine_wire_pb2 as wire
from compute_svc.wire.request import HiddenStates, Request, Tokens
from compute_svc.wire.step_output import Hidden, KvChanges, Load, Pinned, PrefixStats, Released, Rows, Started, StepOutput
from triserve.rpc.errors import from_proto, to_proto
from triserve.rpc.sampling import Sampling
from triserve.v1 import common_pb2, compute_pb2

_LENGTH = struct.Struct("<I")


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
    return wire.Submission(
        number=request.number,
        tenant=request.tenant,
        prompt=encode_tokens(request.prompt),
        generated=encode_tokens(request.generated),
        sampling=request.sampling.write(),
        stopping=common_pb2.StoppingParams(
            max_tokens=request.max_tokens, min_tokens=request.min_tokens, stop_token_ids=request.stop_token_ids
        ),
        submitted_at=request.submitted_at,
        deadline=request.deadline,
        priority=request.priority,
        pins=request.pins,
        hidden_states=request.hidden_states.value,
    )


def decode_request(message: wire.Submission, logits_width: int) -> Request:
    """The inverse of `encode_request`.

    Raises:
        InvalidRequest: a parameter is out of its range.
    """
    return Request(
        number=message.number,
        tenant=message.tenant,
        prompt=decode_tokens(message.prompt),
        generated=decode_tokens(message.generated),
        max_tokens=message.stopping.max_tokens,
        submitted_at=message.submitted_at,
        min_tokens=message.stopping.min_tokens,
        stop_token_ids=frozenset(message.stopping.stop_token_ids),
        sampling=Sampling.read(message.sampling, logits_width),
        deadline=message.deadline if message.HasField("deadline") else None,
        priority=message.priority,
        pins=message.pins,
        hidden_states=HiddenStates(message.hidden_states),
    )


def encode_output(output: StepOutput, ended_at: float) -> wire.Output:
    """A step's output as it travels from the engine.

    Args:
        output: Of the step.
        ended_at: When, on the monotonic clock.
    """
    return wire.Output(
        rows=None if output.rows is None else _encode_rows(output.rows),
        hidden=[wire.Hidden(**item._asdict()) for item in output.hidden],
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
        [Hidden(item.number, item.first_position, item.vectors, item.width) for item in message.hidden],
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
        numbers=rows.numbers.astype("<u8", copy=False).tobytes(),
        positions=rows.positions.astype("<u4", copy=False).tobytes(),
        counts=rows.counts.astype("<u4", copy=False).tobytes(),
        tokens=rows.tokens.astype("<u4", copy=False).tobytes(),
        logprobs=rows.logprobs,
        logits=rows.logits,
        prompt_logprobs=rows.prompt_logprobs,
        computed=rows.computed,
    )


def _decode_rows(message: wire.Rows) -> Rows:
    return Rows(
        np.frombuffer(message.numbers, "<u8"),
        np.frombuffer(message.positions, "<u4"),
        np.frombuffer(message.counts, "<u4"),
        np.frombuffer(message.tokens, "<u4"),
        list(message.logprobs),
        list(message.logits),
        list(message.prompt_logprobs),
        list(message.computed),
    )
