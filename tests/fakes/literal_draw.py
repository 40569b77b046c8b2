"""`SamplingParams` in common.proto once more, in plain Python, one id at a time: slow, and made of nothing the two implementations use."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

from triserve.rpc.sampling import Sampling

LARGEST = (2 - 2.0**-23) * 2.0**127
MASK = 0xFFFFFFFF


def philox(counter: Sequence[int], seed: int) -> list[int]:
    """Four words."""
    c, k = list(counter), [seed & MASK, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def exponential(seed: int, position: int, token: int) -> float:
    """The e of an id."""

    def w(a: int, b: int) -> list[int]:
        return philox((a, position, b, 0), seed)

    def t(x: int) -> float:
        return -math.log((x + 0.5) / 2**32)

    block, lane = (token >> 12) << 8 | (token & 255), (token >> 8) & 15
    m = t(w(block >> 2, 0)[block & 3]) / 16
    if lane == w(block >> 2, 1)[block & 3] >> 28:
        return m
    return m + t(w(block, 2 + (lane >> 2))[lane & 3])


def dry_length(tokens: Sequence[int], token: int, breakers: Iterable[int]) -> int:
    """The largest n, tried one by one against every earlier place."""
    breaking, found = set(breakers), 0
    for n in range(1, 65):
        last = tokens[len(tokens) - n :]
        if n > len(tokens) or token in breaking or breaking & set(last):
            break
        if any(list(tokens[start : start + n]) == list(last) and tokens[start + n] == token for start in range(len(tokens) - n)):
            found = n
    return found


def float32(value: float) -> float:
    """Rounded."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def changed_logits(
    logits: Sequence[float], sampling: Sampling, prompt: Sequence[int], answer: Sequence[int], stops: Iterable[int], min_tokens: int
) -> list[float]:
    """Step 1."""
    tokens = [*prompt, *answer]
    bias = dict(zip(sampling.logit_bias_ids, sampling.logit_bias_values, strict=True))
    banned = {*sampling.banned_token_ids, *(stops if len(answer) < min_tokens else ())}
    if sampling.allowed_token_ids:
        banned |= set(range(len(logits))) - set(sampling.allowed_token_ids)
    for word in sampling.bad_words:
        if [*tokens, word[-1]][-len(word) :] == list(word):
            banned.add(word[-1])
    changed = []
    for token, raw in enumerate(logits):
        value = float(raw)
        if token in tokens:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        if token in answer:
            value = value - sampling.presence_penalty - sampling.frequency_penalty * answer.count(token)
        n = dry_length(tokens, token, sampling.dry_breaker_ids) if sampling.dry_multiplier else 0
        if n >= sampling.dry_allowed_length:
            value -= sampling.dry_multiplier * sampling.dry_base ** (n - sampling.dry_allowed_length)
        value += bias.get(token, 0.0)
        if value > -math.inf:
            value = float32(min(max(value, -LARGEST), LARGEST))
        changed.append(-math.inf if token in banned else value)
    return changed


def left_by_filters(changed: Sequence[float], sampling: Sampling, position: int) -> list[int]:
    """Steps 3 and 4: the ids that can be drawn."""
    ids = [token for token, value in enumerate(changed) if value > -math.inf]
    score = {token: changed[token] / sampling.temperature for token in ids}
    if sampling.top_n_sigma is not None:
        mean = math.fsum(changed[token] for token in ids) / len(ids)
        deviation = math.sqrt(math.fsum((changed[token] - mean) ** 2 for token in ids) / len(ids))
        least = max(changed[token] for token in ids) - sampling.top_n_sigma * deviation
        ids = [token for token in ids if changed[token] >= least]
    ids.sort(key=lambda token: (-changed[token], token))
    ids = ids[: sampling.top_k]
    if sampling.typical_p < 1:
        p = _probabilities(ids, score)
        # |-log p - entropy| with the logarithm of the sum, which is in both, left out: what is equal comes out equal.
        mean = math.fsum(p[token] * (score[token] - score[ids[0]]) for token in ids)
        surprise = {token: abs(mean - (score[token] - score[ids[0]])) for token in ids}
        rank = {token: place for place, token in enumerate(ids)}
        nearest = sorted(ids, key=lambda token: (surprise[token], rank[token]))
        kept = _prefix(nearest, p, sampling.typical_p)
        ids = [token for token in ids if token in kept]
    if sampling.top_p < 1:
        ids = _prefix(ids, _probabilities(ids, score), sampling.top_p)
    best = max(score[token] for token in ids)
    ids = [token for token in ids if math.exp(score[token] - best) >= sampling.min_p]
    if sampling.xtc_probability > 0 and (philox((0, position, 0, 1), sampling.seed or 0)[0] + 0.5) / 2**32 < sampling.xtc_probability:
        p = _probabilities(ids, score)
        above = [token for token in ids if p[token] >= sampling.xtc_threshold]
        ids = [token for token in ids if token not in above[:-1]]
    return ids


def literal_draw(logits: Sequence[float], sampling: Sampling, position: int, **of_changes: Any) -> int | None:
    """The token, or None."""
    changed = changed_logits(logits, sampling, **of_changes)
    if max(changed) == -math.inf:
        return None
    if sampling.temperature == 0 or sampling.top_k == 1:
        return changed.index(max(changed))
    keys = {
        token: changed[token] / sampling.temperature - math.log(exponential(sampling.seed or 0, position, token))
        for token in left_by_filters(changed, sampling, position)
    }
    return min(keys, key=lambda token: (-keys[token], token))


def _probabilities(ids: Sequence[int], score: dict[int, float]) -> dict[int, float]:
    best = max(score[token] for token in ids)
    total = math.fsum(math.exp(score[token] - best) for token in ids)
    return {token: math.exp(score[token] - best) / total for token in ids}


def _prefix(ids: Sequence[int], p: dict[int, float], share: float) -> list[int]:
    reached = 0.0
    for count, token in enumerate(ids, 1):
        reached += p[token]
        if reached >= share:
            return list(ids[:count])
    return list(ids)
