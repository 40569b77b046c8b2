"""Requests to simulate: when they come, how long they are and whose they are, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compute_svc.wire.request import Request

_NO_TOKENS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """n requests in the order of their arrival.

    Prompts share nothing but the first `shared_tokens` tokens with those of the same `group`.

    Attributes:
        arrivals_s: [n] float64, rising.
        prompt_tokens: [n] int64, at least 1; above shared_tokens where a group is given.
        answer_tokens: [n] int64, at least 1, exactly generated.
        tenants: [n] int64, whose each is.
        priorities: [n] int64.
        groups: [n] int64; -1 = shares nothing.
        shared_tokens: How many tokens the prompts of a group share.

    Raises:
        ValueError: The arrays are not of one length, or hold what they may not.
    """

    arrivals_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    answer_tokens: npt.NDArray[np.int64]
    tenants: npt.NDArray[np.int64]
    priorities: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    shared_tokens: int = 0

    def __post_init__(self) -> None:
        columns = (self.arrivals_s, self.prompt_tokens, self.answer_tokens, self.tenants, self.priorities, self.groups)
        if len({column.shape for column in columns}) != 1 or self.arrivals_s.ndim != 1 or not len(self):
            raise ValueError("a workload has requests, and a number of each kind for every one")
        if self.prompt_tokens.min() < 1 or self.answer_tokens.min() < 1:
            raise ValueError("prompts and answers have one token at least")
        if (np.diff(self.arrivals_s) < 0).any():
            raise ValueError("requests are in the order of their arrival")
        if (self.prompt_tokens[self.groups >= 0] <= self.shared_tokens).any():
            raise ValueError("a prompt is longer than what it shares")

    def __len__(self) -> int:
        return int(self.arrivals_s.size)

    def request(self, index: int) -> Request:
        """A request as the scheduler takes it; its number is its index."""
        group = int(self.groups[index])
        prompt = np.zeros(int(self.prompt_tokens[index]), dtype=np.int64)
        # Ids below zero are groups', those above requests' own: no two prompts go on alike.
        if group >= 0:
            prompt[: self.shared_tokens] = -1 - group
            prompt[self.shared_tokens] = index + 1
        else:
            prompt[0] = index + 1
        return Request(
            index,
            str(self.tenants[index]),
            prompt,
            _NO_TOKENS,
            int(self.answer_tokens[index]),
            float(self.arrivals_s[index]),
            priority=int(self.priorities[index]),
        )


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pairs of lengths to draw from: [m] int64 each."""

    prompt_tokens: npt.NDArray[np.int64]
    answer_tokens: npt.NDArray[np.int64]


def log_normal_lengths(
    num: int, *, prompt_median: float, answer_median: float, sigma: float, max_prompt: int, max_answer: int, seed: int
) -> Lengths:
    """Heavy-tailed lengths: most are short, a few very long.

    Args:
        num: How many pairs.
        prompt_median: Half of the prompts are shorter.
        answer_median: Half of the answers are shorter.
        sigma: Of the logarithms; 1.5 gives a mean three times the median.
        max_prompt: Longer ones are cut to this.
        max_answer: Longer ones are cut to this.
    """
    random = np.random.default_rng(seed)

    def draw(median: float, longest: int) -> npt.NDArray[np.int64]:
        return np.clip(np.rint(random.lognormal(np.log(median), sigma, num)), 1, longest).astype(np.int64)

    return Lengths(draw(prompt_median, max_prompt), draw(answer_median, max_answer))


def uniform_lengths(num: int, *, prompt: tuple[int, int], answer: tuple[int, int], seed: int) -> Lengths:
    """Lengths drawn evenly from ranges whose ends belong to them."""
    random = np.random.default_rng(seed)
    return Lengths(random.integers(*prompt, num, endpoint=True), random.integers(*answer, num, endpoint=True))


def poisson_workload(lengths: Lengths, *, num_requests: int, rate: float, seed: int, num_tenants: int = 1) -> Workload:
    """Requests that come independently of each other, with lengths drawn from a table.

    Args:
        lengths: To draw from, with repetition.
        rate: Requests per second.
    """
    random = np.random.default_rng(seed)
    chosen = random.integers(0, lengths.prompt_tokens.size, num_requests)
    return Workload(
        arrivals_s=np.cumsum(random.exponential(1 / rate, num_requests)),
        prompt_tokens=lengths.prompt_tokens[chosen],
        answer_tokens=lengths.answer_tokens[chosen],
        tenants=random.integers(0, num_tenants, num_requests),
        priorities=np.zeros(num_requests, dtype=np.int64),
        groups=np.full(num_requests, -1),
    )
