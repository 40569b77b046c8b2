"""Answers as vLLM's engine gives them: chunks of token ids as they come, and a whole at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from smg_grpc_proto import vllm_engine_pb2

from compute_svc.replica.gateway_link import GatewayLink
from compute_svc.replica.vllm_door.generate_request import in_vllms_words
from triserve.rpc import limits
from triserve.rpc.errors import Unavailable, from_proto
from triserve.v1 import common_pb2, compute_pb2, sampler_pb2

_FINISH_REASONS = {common_pb2.FINISH_REASON_STOP: "stop", common_pb2.FINISH_REASON_LENGTH: "length"}


async def answers_of(
    link: GatewayLink, request: vllm_engine_pb2.GenerateRequest, submissions: Sequence[compute_pb2.SubmitRequest]
) -> AsyncIterator[vllm_engine_pb2.GenerateResponse]:
    """What a request is answered, up to the end of its last choice.

    Args:
        link: hears of its submissions and of nothing else.
        request: as it came.
        submissions: its choices; each has its index as its number.

    Raises:
        ServiceError: a choice failed.
    """
    choices = [_Choice(request, submission) for submission in submissions]
    num_open = len(choices)
    while num_open:
        response = await link.next_response()
        if response is None:
            raise Unavailable("the replica is shutting down")
        for started in response.started:
            choices[started.request].cached_tokens = started.cached_tokens
        for parcel in response.parcels:
            for delta in _deltas_of(sampler_pb2.DeltaFrame.FromString(parcel)):
                chunk = choices[delta.choice].take(delta)
                if request.stream and (chunk.token_ids or chunk.HasField("output_logprobs")):
                    yield vllm_engine_pb2.GenerateResponse(chunk=chunk)
        for ended in response.ended:
            if ended.outcome == compute_pb2.REQUEST_OUTCOME_FAILED:
                raise in_vllms_words(from_proto(ended.error))
            num_open -= 1
            yield vllm_engine_pb2.GenerateResponse(complete=choices[ended.request].whole())


class _Delta(NamedTuple):
    """What is new of one choice."""

    choice: int
    tokens: Sequence[int]
    text: str
    logprobs: Sequence[sampler_pb2.TokenLogprobs]
    prompt_logprobs: Sequence[sampler_pb2.TokenLogprobs]
    finish: common_pb2.FinishReason.ValueType


def _deltas_of(frame: sampler_pb2.DeltaFrame) -> Iterator[_Delta]:
    """A checked frame's deltas."""
    tokens, logprobs, prompt_logprobs = iter(frame.token), iter(frame.logprobs), iter(frame.prompt_logprobs)
    none = [0] * len(frame.request)
    counts = zip(frame.num_tokens, frame.num_logprobs or none, frame.num_prompt_logprobs or none, strict=True)
    for row, (num_tokens, num_logprobs, num_prompt_logprobs) in enumerate(counts):
        yield _Delta(
            frame.request[row],
            list(islice(tokens, num_tokens)),
            frame.text[row],
            list(islice(logprobs, num_logprobs)),
            list(islice(prompt_logprobs, num_prompt_logprobs)),
            frame.finish_reason[row],
        )


class _Choice:
    """One answer as it grows.

    Args:
        request: as it came.
        submission: of the answer.
    """

    def __init__(self, request: vllm_engine_pb2.GenerateRequest, submission: compute_pb2.SubmitRequest) -> None:
        self._index = submission.request
        self._prompt_tokens = len(submission.token_ids)
        self._stream = request.stream
        self._wanted_ids = frozenset(request.sampling_params.stop_token_ids)
        self._stop_ids = frozenset(submission.stopping.stop_token_ids)
        self._stop_strings = submission.stopping.stop_strings
        self._tokens: list[int] = []
        # As much of the text's end as a stop string may have; nothing without stop strings.
        self._text_end = ""
        self._logprobs: vllm_engine_pb2.OutputLogProbs | None = None
        # Of the prompt, which come in parts before the first token; None = there are none, or a chunk has had them.
        self._prompt_logprobs: vllm_engine_pb2.InputLogProbs | None = None
        self._finish = common_pb2.FINISH_REASON_UNSPECIFIED
        self.cached_tokens = 0

    def take(self, delta: _Delta) -> vllm_engine_pb2.GenerateStreamChunk:
        """Grows by a delta, and says it in vLLM's words."""
        self._tokens += delta.tokens
        self._finish = delta.finish
        if delta.prompt_logprobs:
            if self._prompt_logprobs is None:
                self._prompt_logprobs = vllm_engine_pb2.InputLogProbs()
            self._prompt_logprobs.MergeFrom(_input_logprobs(delta.prompt_logprobs))
        if self._stop_strings:
            self._text_end = (self._text_end + delta.text)[-limits.MAX_STOP_STRING_CHARS :]
        logprobs = _output_logprobs(delta.logprobs) if delta.logprobs else None
        if logprobs is not None and not self._stream:
            if self._logprobs is None:
                self._logprobs = vllm_engine_pb2.OutputLogProbs()
            self._logprobs.MergeFrom(logprobs)
        chunk = vllm_engine_pb2.GenerateStreamChunk(
            token_ids=delta.tokens,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(delta.tokens),
            cached_tokens=self.cached_tokens,
            output_logprobs=logprobs,
            index=self._index,
        )
        if self._stream and delta.tokens and self._prompt_logprobs is not None:
            chunk.input_logprobs.CopyFrom(self._prompt_logprobs)
            self._prompt_logprobs = None
        return chunk

    def whole(self) -> vllm_engine_pb2.GenerateComplete:
        """The answer that has ended; log-probabilities are in its chunks where it was streamed."""
        complete = vllm_engine_pb2.GenerateComplete(
            output_ids=self._tokens,
            # Without a word from its sampler it was cancelled.
            finish_reason=_FINISH_REASONS.get(self._finish, "abort"),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(self._tokens),
            cached_tokens=self.cached_tokens,
            output_logprobs=self._logprobs,
            input_logprobs=self._prompt_logprobs,
            index=self._index,
        )
        if self._finish == common_pb2.FINISH_REASON_STOP:
            self._name_stop(complete)
        return complete

    def _name_stop(self, complete: vllm_engine_pb2.GenerateComplete) -> None:
        """What the client asked to stop at; the model's own end has no name."""
        if self._tokens[-1] in self._wanted_ids:
            complete.matched_token_id = self._tokens[-1]
        elif self._tokens[-1] not in self._stop_ids:
            matched = max((stop for stop in self._stop_strings if self._text_end.endswith(stop)), key=len, default="")
            if matched:
                complete.matched_stop_str = matched


def _tops(entries: Sequence[sampler_pb2.TokenLogprobs]) -> list[vllm_engine_pb2.TopLogProbs]:
    """The likeliest tokens of each entry."""
    return [
        vllm_engine_pb2.TopLogProbs(values=[one.logprob for one in entry.top], token_ids=[one.token for one in entry.top])
        for entry in entries
    ]


def _output_logprobs(entries: Sequence[sampler_pb2.TokenLogprobs]) -> vllm_engine_pb2.OutputLogProbs:
    tops = _tops(entries)
    return vllm_engine_pb2.OutputLogProbs(
        token_logprobs=[entry.logprob for entry in entries],
        token_ids=[entry.token for entry in entries],
        top_logprobs=tops if any(top.token_ids for top in tops) else (),
    )


def _input_logprobs(entries: Sequence[sampler_pb2.TokenLogprobs]) -> vllm_engine_pb2.InputLogProbs:
    # The prompt's first token has an entry without a rank, whose value says nothing.
    values = [vllm_engine_pb2.InputTokenLogProb(value=entry.logprob if entry.HasField("rank") else None) for entry in entries]
    return vllm_engine_pb2.InputLogProbs(token_logprobs=values, token_ids=[entry.token for entry in entries], top_logprobs=_tops(entries))
