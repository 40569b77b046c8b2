"""What a step tells of known tokens besides what is drawn: log-probabilities of prompts, and hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.drawing.prompt_logprobs import PromptRows, prompt_rows
from compute_svc.scheduler.base import Chunk, RequestState
from compute_svc.wire.request import HiddenStates
from compute_svc.wire.step_output import Hidden
from triserve.v1 import sampler_pb2


class Readings(NamedTuple):
    """What a step read.

    Attributes:
        prompt_logprobs: For samplers.
        hidden: For gateways.
        broken: Requests with a row that is not finite; nothing is told of them.
    """

    prompt_logprobs: list[sampler_pb2.PromptLogprobs]
    hidden: list[Hidden]
    broken: list[RequestState]


NOTHING = Readings([], [], [])


def read_chunks(chunks: Sequence[Chunk], logits: torch.Tensor, vectors: torch.Tensor | None) -> Readings:
    """Reads what is wanted of the chunks of a step that has been computed.

    What is told of a token depends on its request's tokens alone, not on how they were split into steps.

    Args:
        chunks: All of the step, in order.
        logits: [tokens of their `logprob_tokens`, width] float32.
        vectors: [tokens of their `hidden_tokens`, hidden size] float32; None = there are no such tokens.

    Effects: adds to the sums of hidden states whose mean is wanted.
    """
    readings = Readings([], [], [])
    rows = _rows(chunks, logits) if len(logits) else None
    on_host = None if vectors is None else vectors.cpu().numpy()
    logit_row = vector_row = 0
    for chunk in chunks:
        if not chunk.read_tokens:
            continue
        first_logit, logit_row = logit_row, logit_row + len(chunk.logprob_tokens)
        first_vector, vector_row = vector_row, vector_row + len(chunk.hidden_tokens)
        some = None if on_host is None else on_host[first_vector:vector_row]
        is_finite = (rows is None or rows.is_finite[first_logit:logit_row].all()) and (some is None or np.isfinite(some).all())
        if not is_finite:
            readings.broken.append(chunk.state)
            continue
        if rows is not None and logit_row > first_logit:
            readings.prompt_logprobs.append(_prompt_logprobs(chunk, rows.of(first_logit, logit_row)))
        if some is not None and len(some):
            readings.hidden.extend(_hidden(chunk, some))
    return readings


def _rows(chunks: Sequence[Chunk], logits: torch.Tensor) -> PromptRows:
    wanting = [chunk for chunk in chunks if chunk.logprob_tokens]
    targets = [chunk.state.tokens[chunk.logprob_tokens.start + 1 : chunk.logprob_tokens.stop + 1] for chunk in wanting]
    return prompt_rows(logits, np.concatenate(targets), max(chunk.state.request.sampling.prompt_logprobs or 0 for chunk in wanting))


def _prompt_logprobs(chunk: Chunk, rows: PromptRows) -> sampler_pb2.PromptLogprobs:
    num_top = chunk.state.request.sampling.prompt_logprobs
    return sampler_pb2.PromptLogprobs(
        request=chunk.state.request.number,
        # The logits of a token are about the next one.
        first_position=chunk.logprob_tokens.start + 1,
        logprob=rows.logprobs.tolist(),
        rank=rows.ranks.tolist(),
        top_token=rows.top_ids[:, :num_top].reshape(-1).tolist(),
        top_logprob=rows.top_logprobs[:, :num_top].reshape(-1).tolist(),
    )


def _hidden(chunk: Chunk, vectors: npt.NDArray[np.float32]) -> list[Hidden]:
    state, wanted = chunk.state, chunk.hidden_tokens
    number, width = state.request.number, vectors.shape[1]
    if state.request.hidden_states is not HiddenStates.MEAN:
        return [Hidden(number, wanted.start, vectors.astype("<f4", copy=False).tobytes(), width)]
    total = np.zeros(width) if state.hidden_sum is None else state.hidden_sum
    # One by one: a sum of sums would depend on where the chunks end.
    for vector in vectors:
        total += vector
    state.hidden_sum = total
    if wanted.stop < state.num_given:
        return []
    return [Hidden(number, 0, (total / state.num_given).astype("<f4").tobytes(), width)]
