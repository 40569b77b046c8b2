"""How long a step takes, from what it computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np


class StepWork(NamedTuple):
    """What one step computes.

    Attributes:
        decode_rows: Requests that compute one token.
        prefill_tokens: Prompt tokens.
        context_tokens: Tokens whose KV is read: for each decode row and each chunk those in front of it.
    """

    decode_rows: int
    prefill_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a step, linear in its work.

    Attributes:
        step_s: Of any step.
        decode_row_s: Of each decode row.
        prefill_token_s: Of each prompt token.
        context_token_s: Of each token whose KV is read.

    Raises:
        ValueError: A price is negative, or a step costs nothing.
    """

    step_s: float
    decode_row_s: float
    prefill_token_s: float
    context_token_s: float

    def __post_init__(self) -> None:
        if min(astuple(self)) < 0 or self.step_s + min(self.decode_row_s, self.prefill_token_s) <= 0:
            raise ValueError(f"{self} has a negative price, or a step that takes no time")

    def seconds(self, work: StepWork) -> float:
        """What a step takes."""
        rows, tokens, context = work
        return self.step_s + rows * self.decode_row_s + tokens * self.prefill_token_s + context * self.context_token_s


# Least squares over measured steps of the tests' tiny model (4 layers of width 256) in float32 on one core of an AMD EPYC with torch 2.13.0+cpu
# and one thread, in processor time on a core that was shared with others: `fit` on what `measure` gives, median error 4 %.
# tests/bench/scheduling/simulator.py measures again and reports both.
TINY_MODEL_ON_ONE_CPU_CORE = CostModel(step_s=3.33e-3, decode_row_s=1.50e-4, prefill_token_s=1.05e-4, context_token_s=1.20e-6)


def fit(works: Sequence[StepWork], seconds: Sequence[float]) -> CostModel:
    """The prices that explain measured steps best, by least squares of the relative error; none of them is negative.

    A price that would be negative is no price at all: its column is left out and the others are fitted again.

    Args:
        works: At least as many as there are prices, of different kinds.
        seconds: What each took, above 0.

    Raises:
        ValueError: The steps do not determine the prices.
    """
    if len(works) != len(seconds) or not all(value > 0 for value in seconds):
        raise ValueError(f"{len(works)} steps and {len(seconds)} times, each above 0, are to be of one length")
    measured = np.array(seconds)
    # Relative: a long step is measured no better than a short one.
    columns = np.array([(1.0, *work) for work in works]) / measured[:, None]
    # In units of their own, so that the rank is not judged by their size.
    scale = np.abs(columns).max(axis=0, initial=0.0)
    if len(works) < columns.shape[1] or not scale.all() or np.linalg.matrix_rank(columns / scale) < columns.shape[1]:
        raise ValueError(f"{len(works)} steps do not determine {columns.shape[1]} prices")
    kept = list(range(columns.shape[1]))
    while True:
        solution = np.linalg.lstsq(columns[:, kept] / scale[kept], np.ones(len(works)), rcond=None)[0]
        if (solution >= 0).all():
            break
        del kept[int(solution.argmin())]
    prices = np.zeros(columns.shape[1])
    prices[kept] = solution / scale[kept]
    return CostModel(*prices.tolist())


def roofline(
    *, weight_bytes: float, kv_bytes_per_token: float, bytes_per_s: float, flops_per_token: float, flops_per_s: float
) -> CostModel:
    """The prices of a device that reads all weights once a step and each context token's KV once, computes each token at its peak rate, and
    overlaps neither: computed, not measured."""
    token_s = flops_per_token / flops_per_s
    return CostModel(weight_bytes / bytes_per_s, token_s, token_s, kv_bytes_per_token / bytes_per_s)
