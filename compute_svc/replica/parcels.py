"""Looks into a sampler's parcel of text before a gateway gets it: it may speak of the sampler's own requests alone.

A parcel travels on as the sampler made it. It is opened all the same, because a gateway drops its whole stream over a frame whose columns
do not fit, and because the gateway cannot know which sampler may speak of which request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from triserve.rpc.delta_frame import read_delta_frame
from triserve.rpc.session import MalformedMessage
from triserve.v1 import sampler_pb2

# Text and log-probabilities of what was held back, and for each token of answer or prompt its own bytes, those of the likeliest and of named ids,
# with room to spare.
_MAX_BYTES_PER_TOKEN = 64 << 10
_MAX_BYTES_BESIDE = 1 << 20
# One entry for each delta.
_COLUMNS = ("request", "epoch", "first_position", "num_tokens", "text", "finish_reason")


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
        num_prompt_logprobs: likewise.
    """

    content: bytes
    num_tokens: int
    num_prompt_logprobs: int


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
    frame = read_delta_frame(content, logits_width=logits_width)
    num_tokens, num_prompt_logprobs = len(frame.token), len(frame.prompt_logprobs)
    limit = _MAX_BYTES_BESIDE + _MAX_BYTES_PER_TOKEN * (num_tokens + num_prompt_logprobs)
    if len(content) > limit:
        raise MalformedMessage(f"a parcel of {num_tokens + num_prompt_logprobs} tokens has {len(content)} bytes, the limit is {limit}")
    numbers = list(map(requests.get, zip(frame.request, frame.epoch, strict=True)))
    if None in numbers:
        raise MalformedMessage("a parcel has text of a request that is not the sampler's")
    if not leaving.isdisjoint(numbers):
        kept = [index for index, number in enumerate(numbers) if number not in leaving]
        content = _only(frame, kept).SerializeToString()
    return CheckedParcel(content, num_tokens, num_prompt_logprobs)


def _only(frame: sampler_pb2.DeltaFrame, kept: Sequence[int]) -> sampler_pb2.DeltaFrame:
    """The frame with some of its deltas."""
    rest = sampler_pb2.DeltaFrame()
    first_token = first_logprob = first_of_prompt = 0
    nothing = [0] * len(frame.request)
    counts = zip(frame.num_tokens, frame.num_logprobs or nothing, frame.num_prompt_logprobs or nothing, strict=True)
    for index, (num_tokens, num_entries, num_of_prompt) in enumerate(counts):
        if index in kept:
            for name in _COLUMNS:
                getattr(rest, name).append(getattr(frame, name)[index])
            rest.num_logprobs.append(num_entries)
            rest.token.extend(frame.token[first_token : first_token + num_tokens])
            rest.logprobs.extend(frame.logprobs[first_logprob : first_logprob + num_entries])
            if frame.num_prompt_logprobs:
                rest.num_prompt_logprobs.append(num_of_prompt)
                rest.first_prompt_position.append(frame.first_prompt_position[index])
                rest.prompt_logprobs.extend(frame.prompt_logprobs[first_of_prompt : first_of_prompt + num_of_prompt])
        first_token += num_tokens
        first_logprob += num_entries
        first_of_prompt += num_of_prompt
    return rest
