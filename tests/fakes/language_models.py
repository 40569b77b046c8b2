"""Replicas that answer probes from a small language model: log-probabilities of a table, or of any function of the tokens so far."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gateway.flow.generations.answer import Started
from tests.fakes.fake_stages import FakeAttempt
from triserve.v1 import compute_pb2, sampler_pb2

# The log-probability of every token behind some tokens.
LanguageModel: TypeAlias = Callable[[Sequence[int]], Sequence[float]]
# The hidden state of the last of some tokens.
HiddenModel: TypeAlias = Callable[[Sequence[int]], Sequence[float]]


def random_model(vocab_size: int, seed: int, *, sharpness: float = 2.0) -> LanguageModel:
    """A model whose distributions are random, and the same for the same tokens."""

    def logprobs(token_ids: Sequence[int]) -> list[float]:
        drawn = random.Random(f"{seed} {list(token_ids)}")
        logits = [sharpness * drawn.gauss(0, 1) for _ in range(vocab_size)]
        normaliser = math.log(sum(map(math.exp, logits)))
        return [logit - normaliser for logit in logits]

    return logprobs


def token_name(token: int) -> bytes:
    """A token's own bytes: those of a byte, or the name of a special token."""
    return bytes([token]) if token < 256 else f"<{token}>".encode()


def random_vectors(width: int, seed: int) -> HiddenModel:
    """Hidden states that are random, and the same for the same tokens."""

    def vector(token_ids: Sequence[int]) -> list[float]:
        drawn = random.Random(f"{seed} {list(token_ids)}")
        return [drawn.gauss(0, 1) for _ in range(width)]

    return vector


def probed(model: LanguageModel, hidden: HiddenModel | None = None) -> Callable[[FakeAttempt], None]:
    """A replica's play: one greedy token, with as many of the likeliest as are asked for, or none; and hidden states where they are wanted."""

    def play(attempt: FakeAttempt) -> None:
        request, answer = attempt.request, attempt.answer
        assert not request.generated_token_ids and not request.stopping.stop_token_ids
        if request.hidden_states:
            assert hidden is not None
            first = 0 if request.hidden_states == compute_pb2.HIDDEN_STATES_ALL else len(request.token_ids) - 1
            for end in range(first + 1, len(request.token_ids) + 1):
                vector = hidden(request.token_ids[:end])
                answer.hidden += struct.pack(f"<{len(vector)}f", *vector)
        answer.begin(Started(cached_tokens=2, queue_us=3000, prefill_us=7000))
        if request.stopping.max_tokens == 0:
            answer.push(0, [], "", "length", now=0.0)
            return
        assert request.sampling.temperature == 0 and request.stopping.max_tokens == 1
        logprobs = model(request.token_ids)
        ranked = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))
        top = [
            sampler_pb2.TopLogprob(token=token, logprob=logprobs[token], token_bytes=token_name(token))
            for token in ranked[: request.sampling.top_logprobs]
        ]
        best = ranked[0]
        entry = sampler_pb2.TokenLogprobs(token=best, logprob=logprobs[best], token_bytes=token_name(best), top=top)
        answer.push(0, [best], "?", "length", [entry], now=0.0)

    return play
