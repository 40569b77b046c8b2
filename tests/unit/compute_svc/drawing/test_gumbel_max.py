"""The largest sum is found whichever way looks for it, and what was not looked at is never larger."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.drawing import blocks, gumbel_max, gumbel_max_cpu, noise
from compute_svc.drawing.rows import Needs, RowNumbers, Settings, Survivors

CPU = torch.device("cpu")
ROWS = 3


def _numbers(seed: int, temperature: float, min_p: float) -> RowNumbers:
    infinite = float("inf")
    settings = np.array([Settings(temperature, infinite, 1.0, 1.0, min_p, infinite, infinite)] * ROWS)
    seeds = np.arange(seed, seed + ROWS, dtype=np.uint64)
    return RowNumbers.send(seeds, np.arange(ROWS), settings.T, Needs(min_p=min_p > 0), CPU)


@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 300, 4096, 5000]),
    st.sampled_from([0.1, 1.0, 30.0]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.sampled_from([0.0, 1.0, 5.0, 1e30]),
)
def test_both_ways_find_what_looking_at_every_id_finds(seed: int, width: int, temperature: float, min_p: float, scale: float) -> None:
    values = np.round(np.random.default_rng(seed).normal(0, 2, (ROWS, width))) * scale
    logits, numbers = torch.from_numpy(values.astype(np.float32)), _numbers(seed, temperature, min_p)
    maxima = blocks.maxima(logits)
    best = logits.amax(dim=1, keepdim=True).double() / temperature
    num = blocks.count(width)
    everything = torch.arange(num).expand(ROWS, num)
    least = noise.smallest(numbers.streams, num)
    ids, of_ids = blocks.gather(logits, everything)
    scores = of_ids.double() / temperature
    sums = scores - noise.of_blocks(numbers.streams, everything, least).log()
    sums = sums.masked_fill(torch.exp(scores - best[:, :, None]) < min_p, -torch.inf).flatten(1)
    expected = torch.where(sums == sums.amax(dim=1, keepdim=True), ids.flatten(1), 1 << 40).amin(dim=1)
    for num_blocks in (1, 47, num):
        ways = (
            gumbel_max_cpu.largest(gumbel_max_cpu.best_sums(logits, maxima, best, numbers, num_blocks)),
            gumbel_max.largest_sums(logits, maxima, Survivors(best, best), numbers, num_blocks),
        )
        for tokens, is_drawn in ways:
            assert torch.equal(tokens[is_drawn], expected[is_drawn[:, 0]])
            assert num_blocks < num or is_drawn.all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_rows_go_through(value: float) -> None:
    logits = torch.full((ROWS, 500), -1.0)
    logits[1] = value
    numbers = _numbers(0, 1.0, 0.1)
    choice = gumbel_max.choose(logits, numbers, 47, 256)
    assert choice.best[1].isnan() == (value != value) and choice.tokens[0] < 500
