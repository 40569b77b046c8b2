"""On a CPU, top_k and top_p ask about single ids instead of ranking rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compute_svc.drawing import Drawer, RequestDraw, gumbel_max, ranking
from compute_svc.drawing.ranking import Ranked
from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.bench.drawing.draw_rows import realistic_logits
from tests.fakes.rows_to_draw import draw_rows, row_to_draw
from triserve.rpc.sampling import Sampling

CPU = torch.device("cpu")
WIDTH = 20_000
ROWS = 48
FILTERS: dict[str, dict[str, Any]] = {
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "top_p that leaves little": {"top_p": 0.3},
    "both": {"top_k": 20, "top_p": 0.8, "temperature": 0.7},
    "with min_p": {"top_k": 100, "top_p": 0.95, "min_p": 0.05},
    "with penalties": {"top_p": 0.9, "presence_penalty": 1.5},
}


@pytest.mark.parametrize("options", FILTERS.values(), ids=FILTERS)
def test_few_rows_are_ranked(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ranked: list[int] = []

    def head(logits: torch.Tensor, maxima: torch.Tensor, num_blocks: int) -> Ranked:
        ranked.append(len(logits))
        return ranking.head(logits, maxima, num_blocks)

    monkeypatch.setattr(gumbel_max, "head", head)
    logits = realistic_logits(np.random.default_rng(0), ROWS, WIDTH)
    samplings = [Sampling(seed=seed, **options) for seed in range(ROWS)]
    draws = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=1, logits_width=WIDTH) for one in samplings]
    drawn = draw_rows(Drawer(WIDTH, CPU), torch.from_numpy(logits), [row_to_draw(draw, np.zeros(1, dtype=np.int64)) for draw in draws])
    assert drawn.tokens == [draw_token(row, one, Changes(one, 0, (), [0], WIDTH), 0) for row, one in zip(logits, samplings, strict=True)]
    assert sum(ranked) <= ROWS // 8


def test_a_goal_that_is_met_but_for_the_rounding_of_a_sum_is_decided_by_the_ranking() -> None:
    """The weights of 2, 3, 4 and more equal ids are exactly the goals: which side a sum falls on is for the specified order to say."""
    logits = np.full((ROWS, WIDTH), -np.inf, dtype=np.float32)
    logits[:, 100:108] = 0.5
    samplings = [Sampling(seed=seed, top_p=(1 + seed % 8) / 8) for seed in range(ROWS)]
    draws = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=1, logits_width=WIDTH) for one in samplings]
    drawn = draw_rows(Drawer(WIDTH, CPU), torch.from_numpy(logits), [row_to_draw(draw, np.zeros(1, dtype=np.int64)) for draw in draws])
    assert drawn.tokens == [draw_token(row, one, Changes(one, 0, (), [0], WIDTH), 0) for row, one in zip(logits, samplings, strict=True)]
    assert all(token < 101 + seed % 8 for seed, token in enumerate(drawn.tokens) if token is not None)


def test_broken_rows_are_ranked_by_nobody() -> None:
    logits = torch.zeros((3, WIDTH))
    logits[0, 5], logits[1, :] = torch.nan, -torch.inf
    samplings = [Sampling(seed=seed, top_p=0.5, top_k=30) for seed in range(3)]
    draws = [RequestDraw(one, min_tokens=0, stop_token_ids=(), num_prompt=1, logits_width=WIDTH) for one in samplings]
    drawn = draw_rows(Drawer(WIDTH, CPU), logits, [row_to_draw(draw, np.zeros(1, dtype=np.int64)) for draw in draws])
    assert [status.name for status in drawn.status] == ["BROKEN", "BROKEN", "DRAWN"] and drawn.tokens[2] < 15
