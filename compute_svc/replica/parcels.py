"""Looks into a sampler's parcel of text before a gateway gets it: it may speak of the sampler's own requests alone.

A parcel travels on as the sampler made it. It is opened all the same, because a gateway drops its whole stream over a frame whose columns
do not fit, and because the gateway cannot know which sampler may speak of which request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from google.protobuf.message import DecodeError

from triserve.rpc.session import MalformedMessage
from triserve.v1 import common_pb2, sampler_pb2

# Text and log-probabilities of what was held back, and for each token its own bytes twenty-one times, with room to spare.
_MAX_BYTES_PER_TOKEN = 16 << 10
_MAX_BYTES_BESIDE = 1 << 20
_COLUMNS = ("epoch", "first_position", "num_tokens", "text", "finish_reason")


class TextKey(NamedTuple):
    """Where a request's text goes.

    Attributes:
        gateway: the replica's number of the gateway.
        request: the gateway's number of the request.
        epoch: of the attempt.
    """

    gateway: int
    request: int
    epoch: int


class CheckedParcel(NamedTuple):
    """A parcel that may travel on; empty if nothing of it is wanted.

    Attributes:
        content: a serialised DeltaFrame.
        num_tokens: of all that the sampler sent, wanted or not.
    """

    content: bytes
    num_tokens: int


def read_parcel(content: bytes, requests: Mapping[tuple[int, int], int], leaving: AbstractSet[int], *, logits_width: int) -> CheckedParcel:
    """Checks a parcel for one gateway.

    Args:
        content: a serialised DeltaFrame.
        requests: those the sampler may speak of, by the gateway's number and epoch.
        leaving: those of them that nobody wants to hear of any more.
        logits_width: every token is below it.

    Raises:
        MalformedMessage: it is no DeltaFrame, its columns do not fit, or it speaks of others' requests.
    """
    try:
        frame = sampler_pb2.DeltaFrame.FromString(content)
    except DecodeError:
        raise MalformedMessage("a parcel is no frame of deltas") from None
    _check_columns(frame, logits_width)
    limit = _MAX_BYTES_BESIDE + _MAX_BYTES_PER_TOKEN * len(frame.token)
    if len(content) > limit:
        raise MalformedMessage(f"a parcel of {len(frame.token)} tokens has {len(content)} bytes, the limit is {limit}")
    numbers = list(map(requests.get, zip(frame.request, frame.epoch, strict=True)))
    if None in numbers:
        raise MalformedMessage("a parcel has text of a request that is not the sampler's")
    if not leaving.isdisjoint(numbers):
        kept = [index for index, number in enumerate(numbers) if number not in leaving]
        return CheckedParcel(_only(frame, kept).SerializeToString() if kept else b"", len(frame.token))
    return CheckedParcel(content, len(frame.token))


def _check_columns(frame: sampler_pb2.DeltaFrame, logits_width: int) -> None:
    num_deltas = len(frame.request)
    for name in _COLUMNS:
        if len(getattr(frame, name)) != num_deltas:
            raise MalformedMessage(f"{name} of a parcel has {len(getattr(frame, name))} entries, request has {num_deltas}")
    if frame.num_logprobs and len(frame.num_logprobs) != num_deltas:
        raise MalformedMessage(f"num_logprobs of a parcel has {len(frame.num_logprobs)} entries, request has {num_deltas}")
    for name, counts, entries in (("token", frame.num_tokens, frame.token), ("logprobs", frame.num_logprobs, frame.logprobs)):
        if sum(counts) != len(entries):
            raise MalformedMessage(f"{name} of a parcel has {len(entries)} entries, its deltas have {sum(counts)}")
    if not set(frame.finish_reason) <= set(common_pb2.FinishReason.values()):
        raise MalformedMessage("finish_reason of a parcel is none")
    if frame.token and max(frame.token) >= logits_width:
        raise MalformedMessage(f"token of a parcel is {max(frame.token)}, the limit is {logits_width - 1}")


def _only(frame: sampler_pb2.DeltaFrame, kept: Sequence[int]) -> sampler_pb2.DeltaFrame:
    """The frame with some of its deltas."""
    rest = sampler_pb2.DeltaFrame()
    first_token = first_logprob = 0
    num_logprobs = frame.num_logprobs or [0] * len(frame.request)
    for index, (num_tokens, num_entries) in enumerate(zip(frame.num_tokens, num_logprobs, strict=True)):
        if index in kept:
            for name in ("request", *_COLUMNS):
                getattr(rest, name).append(getattr(frame, name)[index])
            rest.num_logprobs.append(num_entries)
            rest.token.extend(frame.token[first_token : first_token + num_tokens])
            rest.logprobs.extend(frame.logprobs[first_logprob : first_logprob + num_entries])
        first_token += num_tokens
        first_logprob += num_entries
    return rest
