"""Replicas that answer probes from a small language model: log-probabilities of a table, or of any function of the tokens so far."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeAlias

from gateway.flow.answer import Started
from tests.fakes.fake_stages import FakeAttempt
from triserve.v1 import sampler_pb2

# The log-probability of every token behind some tokens.
LanguageModel: TypeAlias = Callable[[Sequence[int]], Sequence[float]]


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


def probed(model: LanguageModel) -> Callable[[FakeAttempt], None]:
    """A replica's play: one greedy token, with as many of the likeliest as are asked for."""

    def play(attempt: FakeAttempt) -> None:
        request, answer = attempt.request, attempt.answer
        assert request.sampling.temperature == 0 and request.stopping.max_tokens == 1 + len(request.generated_token_ids)
        logprobs = model([*request.token_ids, *request.generated_token_ids])
        ranked = sorted(range(len(logprobs)), key=lambda token: (-logprobs[token], token))
        top = [
            sampler_pb2.TopLogprob(token=token, logprob=logprobs[token], token_bytes=token_name(token))
            for token in ranked[: request.sampling.top_logprobs]
        ]
        best = ranked[0]
        entry = sampler_pb2.TokenLogprobs(token=best, logprob=logprobs[best], token_bytes=token_name(best), top=top)
        answer.begin(Started(cached_tokens=2, queue_us=3000, prefill_us=7000))
        answer.push(len(request.generated_token_ids), [best], "?", "length", [entry], now=0.0)

    return play
