"""The head of the ranking is its beginning, taken on a device or on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compute_svc.drawing import blocks
from compute_svc.drawing.ranking import head, head_on_cpu, head_on_device, whole


def _rows(width: int) -> torch.Tensor:
    random = np.random.default_rng(width)
    rows = random.normal(0, 3, (4, width)).astype(np.float32)
    rows[1] = np.round(rows[1])
    rows[2, random.random(width) < 0.99] = -np.inf
    rows[3] = 1.0
    return torch.from_numpy(rows)


@pytest.mark.parametrize("width", [4097, 9000])
@pytest.mark.parametrize("num_blocks", [1, 20, 300])
def test_a_head_is_the_ranking_above_its_level(width: int, num_blocks: int) -> None:
    logits = _rows(width)
    on_device = head_on_device(logits, blocks.maxima(logits), num_blocks)
    on_cpu = head_on_cpu(logits, blocks.maxima(logits), num_blocks)
    ranking = whole(logits)
    assert torch.equal(on_device.level, on_cpu.level)
    for row in range(len(logits)):
        expected = ranking.keys[row][blocks.ranked_logits(ranking.keys[row]) > on_cpu.level[row]].tolist()
        for keys in (on_device.keys[row].tolist(), on_cpu.keys[row].tolist()):
            assert keys[: len(expected)] == expected and set(keys[len(expected) :]) <= {blocks.WORST}


def test_a_head_of_all_blocks_leaves_no_id_out() -> None:
    logits = _rows(300)
    ranked = head(logits, blocks.maxima(logits), 256)
    assert (ranked.level == -torch.inf).all()
    assert blocks.ranked_ids(ranked.keys[3]).tolist() == list(range(300))
