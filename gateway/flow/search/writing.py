"""Text and log-probabilities of sequences that were found, as the samplers write those of answers that are drawn."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from gateway.flow.generations.answer import Delta, FinishReason
from gateway.flow.search.steps import Candidate, Step
from triserve.v1 import common_pb2, sampler_pb2, tokenizer_pb2


class Decoders(Protocol):
    """The tokenizer stage as a search needs it."""

    async def decode(self, request: tokenizer_pb2.DecodeRequest) -> tokenizer_pb2.DecodeResponse:
        """Decodes token ids."""


class Sequenced(NamedTuple):
    """A sequence that has ended."""

    steps: Sequence[Step]
    # Whether its last token is one that ends an answer; if not, it is as long as may be.
    stops: bool

    @property
    def said(self) -> Sequence[Step]:
        """Its tokens that may be text."""
        return self.steps[:-1] if self.stops else self.steps


async def write(found: Sequence[Sequenced], stopping: common_pb2.StoppingParams, decoders: Decoders, *, with_logprobs: bool) -> list[Delta]:
    """Answers, whole.

    Args:
        found: what was found.
        stopping: says which special tokens are text.
        decoders: say which tokens are special.
        with_logprobs: whether the client sees log-probabilities.

    Raises:
        ServiceError: no tokenizer is there.
    """
    hidden: Collection[int] = ()
    if not stopping.HasField("skip_special_tokens") or stopping.skip_special_tokens:
        named = {step.chosen.token: step.chosen.token_bytes for one in found for step in one.said}
        spoken = {name.encode() for name in stopping.spoken_tokens}
        hidden = await special_among([token for token, own in named.items() if own not in spoken], decoders)
    return [written(one, hidden=hidden, with_logprobs=with_logprobs) for one in found]


async def special_among(token_ids: Sequence[int], decoders: Decoders) -> set[int]:
    """Those of some tokens that leave no text and have a name. In most answers there are none, and two questions tell.

    Raises:
        ServiceError: no tokenizer is there.
    """
    if not token_ids or not await _has_special(token_ids, decoders):
        return set()
    special = await asyncio.gather(*(_has_special([token], decoders) for token in token_ids))
    return {token for token, is_special in zip(token_ids, special, strict=True) if is_special}


async def _has_special(token_ids: Sequence[int], decoders: Decoders) -> bool:
    skipping, showing = await asyncio.gather(
        *(decoders.decode(tokenizer_pb2.DecodeRequest(token_ids=token_ids, skip_special_tokens=skip)) for skip in (True, False))
    )
    return skipping.text != showing.text


def written(sequence: Sequenced, *, hidden: Collection[int], with_logprobs: bool) -> Delta:
    """An answer, whole. Its text is that of the bytes of its tokens, one after the other.

    Args:
        sequence: what was found.
        hidden: tokens that are no text.
        with_logprobs: whether the client sees log-probabilities; all but the end's are reported.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    entries: list[sampler_pb2.TokenLogprobs] = []
    length, said = 0, sequence.said
    for index, step in enumerate(said):
        own = b"" if step.chosen.token in hidden else step.chosen.token_bytes
        # What is half a character at the end becomes U+FFFD.
        text = decoder.decode(own, final=index == len(said) - 1)
        entries.append(_entry(step, own, text, length))
        length += len(text)
    token_ids = [step.chosen.token for step in sequence.steps]
    reason: FinishReason = "stop" if sequence.stops else "length"
    return Delta("".join(one.text for one in entries), token_ids, entries if with_logprobs else [], reason)


def _entry(step: Step, token_bytes: bytes, text: str, offset: int) -> sampler_pb2.TokenLogprobs:
    return sampler_pb2.TokenLogprobs(
        logprob=step.chosen.logprob,
        token_bytes=token_bytes,
        top=[_top(one) for one in step.likeliest],
        token=step.chosen.token,
        text=text,
        text_offset=offset,
    )


def _top(one: Candidate) -> sampler_pb2.TopLogprob:
    return sampler_pb2.TopLogprob(token=one.token, logprob=one.logprob, token_bytes=one.token_bytes)
