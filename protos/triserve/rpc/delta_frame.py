"""Reads a frame of deltas off the wire: whole and with columns that fit, or not at all."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from triserve.rpc.session import MalformedMessage
from triserve.v1 import common_pb2, sampler_pb2

_COLUMNS = ("epoch", "first_position", "num_tokens", "text", "finish_reason")
_OPTIONAL_COLUMNS = ("num_logprobs", "num_prompt_logprobs", "first_prompt_position")
_FINISH_REASONS = frozenset(common_pb2.FinishReason.values())


def read_delta_frame(content: bytes, *, logits_width: int) -> sampler_pb2.DeltaFrame:
    """The frame, each column of which has an entry for each delta; those about log-probabilities may be empty where there are none.

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
    for name in _OPTIONAL_COLUMNS:
        if len(getattr(frame, name)) not in (0, num_deltas):
            raise MalformedMessage(f"{name} of a parcel has {len(getattr(frame, name))} entries, request has {num_deltas}")
    if len(frame.first_prompt_position) != len(frame.num_prompt_logprobs):
        raise MalformedMessage("first_prompt_position of a parcel is there without num_prompt_logprobs, or is not with it")
    for name, counts, entries in (
        ("token", frame.num_tokens, frame.token),
        ("logprobs", frame.num_logprobs, frame.logprobs),
        ("prompt_logprobs", frame.num_prompt_logprobs, frame.prompt_logprobs),
    ):
        if sum(counts) != len(entries):
            raise MalformedMessage(f"{name} of a parcel has {len(entries)} entries, its deltas have {sum(counts)}")
    if not _FINISH_REASONS.issuperset(frame.finish_reason):
        raise MalformedMessage("finish_reason of a parcel is none")
    if frame.token and max(frame.token) >= logits_width:
        raise MalformedMessage(f"token of a parcel is {max(frame.token)}, the limit is {logits_width - 1}")
    return frame
