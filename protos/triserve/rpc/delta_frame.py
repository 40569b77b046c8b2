"""Reads a frame of deltas off the wire: whole and with columns that fit, or not at all."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from triserve.rpc.session import MalformedMessage
from triserve.v1 import common_pb2, sampler_pb2

_COLUMNS = ("epoch", "first_position", "num_tokens", "text", "finish_reason")
_FINISH_REASONS = frozenset(common_pb2.FinishReason.values())


def read_delta_frame(content: bytes, *, logits_width: int) -> sampler_pb2.DeltaFrame:
    """The frame, each column of which has an entry for each delta; `num_logprobs` may be empty where there are no log-probabilities.

    Args:
        content: a serialised DeltaFrame.
        logits_width: every token is below it.

    Raises:
        MalformedMessage: it is none, its columns do not fit, or a token or finish reason is none.
    """
    try:
        frame = sampler_pb2.DeltaFrame.FromString(content)
    except DecodeError:
        raise MalformedMessage("a parcel is no frame of deltas") from None
    num_deltas = len(frame.request)
    for name in _COLUMNS:
        if len(getattr(frame, name)) != num_deltas:
            raise MalformedMessage(f"{name} of a parcel has {len(getattr(frame, name))} entries, request has {num_deltas}")
    if frame.num_logprobs and len(frame.num_logprobs) != num_deltas:
        raise MalformedMessage(f"num_logprobs of a parcel has {len(frame.num_logprobs)} entries, request has {num_deltas}")
    for name, counts, entries in (("token", frame.num_tokens, frame.token), ("logprobs", frame.num_logprobs, frame.logprobs)):
        if sum(counts) != len(entries):
            raise MalformedMessage(f"{name} of a parcel has {len(entries)} entries, its deltas have {sum(counts)}")
    if not _FINISH_REASONS.issuperset(frame.finish_reason):
        raise MalformedMessage("finish_reason of a parcel is none")
    if frame.token and max(frame.token) >= logits_width:
        raise MalformedMessage(f"token of a parcel is {max(frame.token)}, the limit is {logits_width - 1}")
    return frame
