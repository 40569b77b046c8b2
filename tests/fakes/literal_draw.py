"""The draw of common.proto word by word, one row at a time and every id of it: slow, and easy to hold against the text."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from triserve.rpc.sampling import Sampling

Numbers = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


def literal_draw(
    logits: npt.NDArray[np.float32],
    sampling: Sampling,
    tokens: list[int],
    *,
    num_prompt: int,
    min_tokens: int = 0,
    stop_token_ids: Collection[int] = (),
) -> int | None:
    """The token that a row draws; None if all ids are banned.

    Args:
        logits: [width], the largest of them a number.
        tokens: Prompt and answer so far.
    """
    position = len(tokens) - num_prompt
    changed = _changed(logits, sampling, tokens, num_prompt)
    banned = set(sampling.banned_token_ids) | (set(stop_token_ids) if position < min_tokens else set())
    if sampling.allowed_token_ids:
        banned |= set(range(logits.size)) - set(sampling.allowed_token_ids)
    banned |= {
        word[-1]
        for word in sampling.bad_words
        if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1] and len(word) <= len(tokens) + 1
    }
    changed[list(banned)] = -np.inf
    if changed.max() == -np.inf:
        return None
    if sampling.greedy:
        return int(changed.argmax())
    scores = changed.astype(np.float64) / sampling.temperature
    ranking = [int(one) for one in np.lexsort((np.arange(logits.size), -scores)) if changed[one] > -np.inf]
    seed, drop = sampling.seed or 0, 0.0
    if sampling.xtc_probability > 0:
        drop = float((_words(seed, position, np.array([0]), 0, 1)[0, 0] + 0.5) / 2.0**32)
    left = np.array(_filtered(ranking, changed.astype(np.float64), scores, sampling, drop), dtype=np.int64)
    sums = scores[left] - np.log(_exponentials(seed, position, left))
    return int(left[sums == sums.max()].min())


def _changed(logits: npt.NDArray[np.float32], sampling: Sampling, tokens: list[int], num_prompt: int) -> npt.NDArray[np.float32]:
    changed = logits.astype(np.float64)
    answer = tokens[num_prompt:]
    for token in set(tokens):
        changed[token] = (
            changed[token] / sampling.repetition_penalty if changed[token] > 0 else changed[token] * sampling.repetition_penalty
        )
    for token in set(answer):
        changed[token] -= sampling.presence_penalty
        changed[token] -= sampling.frequency_penalty * answer.count(token)
    if sampling.dry_multiplier > 0:
        for token, n in _repeated(sampling, tokens).items():
            changed[token] -= sampling.dry_multiplier * sampling.dry_base ** (n - sampling.dry_allowed_length)
    for token, bias in zip(sampling.logit_bias_ids, sampling.logit_bias_values, strict=True):
        changed[token] += bias
    largest = float(np.finfo(np.float32).max)
    return np.where(logits == -np.inf, -np.inf, np.clip(changed, -largest, largest)).astype(np.float32)


def _repeated(sampling: Sampling, tokens: list[int]) -> dict[int, int]:
    longest: dict[int, int] = {}
    for n in range(sampling.dry_allowed_length, min(64, len(tokens) - 1) + 1):
        last = tokens[len(tokens) - n :]
        if set(last) & set(sampling.dry_breaker_ids):
            break
        for start in range(len(tokens) - n):
            following = tokens[start + n]
            if tokens[start : start + n] == last and following not in sampling.dry_breaker_ids:
                longest[following] = n
    return longest


def _filtered(ranking: list[int], logits: Numbers, scores: Numbers, sampling: Sampling, drop: float) -> list[int]:
    left = ranking
    if sampling.top_n_sigma is not None:
        floor = logits[left[0]] - sampling.top_n_sigma * logits[left].std()
        left = [one for one in left if logits[one] >= floor]
    if sampling.top_k is not None:
        left = left[: sampling.top_k]
    if sampling.typical_p < 1:
        weights, below = _weights(scores, left), scores[left] - scores[left[0]]
        # -log p = log(sum of weights) - below, and the entropy is the mean of -log p.
        deviations = np.abs((weights * below).sum() / weights.sum() - below)
        order = np.lexsort((np.arange(len(left)), deviations))
        left = [left[one] for one in sorted(order[_is_short(weights[order], sampling.typical_p)].tolist())]
    if sampling.top_p < 1:
        left = np.array(left)[_is_short(_weights(scores, left), sampling.top_p)].tolist()
    left = [one for one in left if np.exp(scores[one] - scores[left[0]]) >= sampling.min_p]
    if drop < sampling.xtc_probability:
        weights = _weights(scores, left)
        eligible = int((weights >= sampling.xtc_threshold * weights.sum()).sum())
        left = left[max(0, eligible - 1) :]
    return left


def _weights(scores: Numbers, left: list[int]) -> Numbers:
    """Probabilities but for their sum, which is compared with shares of it: equal logits so add up without rounding."""
    weights: Numbers = np.exp(scores[left] - scores[left[0]])
    return weights


def _is_short(weights: Numbers, share: float) -> npt.NDArray[np.bool_]:
    """Whether those before each do not reach the share of all."""
    before: Numbers = np.concatenate(([0.0], np.cumsum(weights)[:-1]))
    is_short: npt.NDArray[np.bool_] = before < share * weights.sum()
    return is_short


def _exponentials(seed: int, position: int, ids: npt.NDArray[np.int64]) -> Numbers:
    block, lane = (ids >> 12) << 8 | (ids & 255), (ids >> 8) & 15
    each = np.arange(ids.size)
    least = _t(_words(seed, position, block >> 2, 0, 0)[each, block & 3]) / 16
    place = _words(seed, position, block >> 2, 1, 0)[each, block & 3] >> np.uint64(28)
    others = least + _t(_words(seed, position, block, 2 + (lane >> 2), 0)[each, lane & 3])
    return np.where(place == lane.astype(np.uint64), least, others)


def _t(words: Words) -> Numbers:
    return -np.log((words.astype(np.float64) + 0.5) / 2.0**32)


def _words(seed: int, position: int, a: npt.NDArray[np.int64], b: npt.NDArray[np.int64] | int, c: int) -> Words:
    """[n, 4]: Philox4x32-10."""
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x = [np.broadcast_to(np.asarray(one, np.uint64), a.shape).copy() for one in (a, position, b, c)]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p, q = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [(q >> half) ^ x[1] ^ np.uint64(key[0]), q & low, (p >> half) ^ x[3] ^ np.uint64(key[1]), p & low]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(x, axis=1)
