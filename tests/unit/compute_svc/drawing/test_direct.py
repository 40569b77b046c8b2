"""What the kernel draws for the drawer is what the drawer's other ways draw; in Triton's interpreter where there is no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.triton_device import DEVICE

from compute_svc.drawing import Drawer, RequestDraw, RowStatus  # isort: skip
from compute_svc.drawing.direct import DirectDraws, take  # isort: skip
from compute_svc.drawing.gumbel_max import choose_in_kernel  # isort: skip
from compute_svc.drawing.rows import Needs, RowNumbers  # isort: skip
from triserve.rpc.sampling import Sampling  # isort: skip


def test_the_ways_that_use_the_kernel_draw_what_the_others_draw() -> None:
    rows, width = 9, 4200
    logits = torch.from_numpy(np.random.default_rng(3).normal(0, 3, (rows, width)).astype(np.float32))
    logits[4, 9] = float("nan")
    options: list[dict[str, Any]] = [{"temperature": 0.0}, {}, {"min_p": 0.1}, {"top_k": 1}, {}, {"temperature": 0.3, "min_p": 0.01}]
    options += [{"top_k": 5}, {"top_p": 0.9, "top_k": 20, "min_p": 0.01}, {"temperature": 0.6, "top_p": 0.8}]
    samplings = [Sampling(seed=2**63 + seed, **one) for seed, one in enumerate(options)]
    draws = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=0, logits_width=width) for one in samplings]
    positions = np.arange(rows)
    expected = Drawer(width, torch.device("cpu")).draw(logits, draws, positions, lambda _: np.empty(0, np.int64))
    direct = DirectDraws.of(draws)
    assert direct is not None
    drawn, again = take(direct.find(logits.to(DEVICE), positions))
    assert not again
    assert drawn.failed == expected.failed == {4: RowStatus.BROKEN}
    assert np.delete(drawn.tokens, 4).tolist() == np.delete(expected.tokens, 4).tolist()
    noisy = [1, 2, 5]
    settings_of = np.array([draws[row].settings for row in noisy]).T
    seeds = np.array([draws[row].seed for row in noisy], dtype=np.uint64)
    numbers = RowNumbers.send(seeds, positions[noisy], settings_of, Needs(min_p=True), DEVICE)
    choice = choose_in_kernel(logits[noisy].to(DEVICE), numbers)
    assert choice.tokens[:, 0].tolist() == expected.tokens[noisy].tolist() and choice.is_drawn.all() and choice.is_ranked.all()
    assert choice.best[:, 0].tolist() == logits[noisy].amax(dim=1).tolist()


def test_rows_that_need_more_are_not_drawn_directly() -> None:
    for options in (
        {"typical_p": 0.9},
        {"top_p": 0.9, "top_n_sigma": 1.0},
        {"xtc_probability": 0.5},
        {"top_logprobs": 1},
        {"temperature": 0.0, "banned_token_ids": (1,)},
    ):
        draw = RequestDraw(Sampling(seed=1, **options), min_tokens=0, stop_token_ids=(), num_prompt=0, logits_width=100)
        assert DirectDraws.of([draw]) is None
