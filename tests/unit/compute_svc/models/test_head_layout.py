"""Heads as attention computes with them: keys and values of one width, what turns first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.models.config import LatentAttention, Rope
from compute_svc.models.head_layout import latent_keys_and_values, latent_queries, padded_heads
from compute_svc.models.registry import read_model_config
from compute_svc.stored_weights.dense_weight import DenseWeight, pick
from tests.fakes.checkpoints import save_checkpoint


@pytest.mark.parametrize(("sizes", "width"), [({}, 20), ({"v_head_dim": 12}, 20), ({"v_head_dim": 33}, 33)])
def test_the_wider_of_keys_and_values_says_how_wide_pages_are(sizes: dict[str, Any], width: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "deepseek_v2", **sizes)

    assert read_model_config(tmp_path).kv_head_dim == width


def test_padding_changes_no_score_and_no_output() -> None:
    rows, columns = torch.randn((2 * 3, 5)), torch.randn((5, 2 * 3))

    order = padded_heads(torch.arange(6), 3, 4)
    wide, narrow = DenseWeight(rows).rows(order).data, DenseWeight(columns).columns(order).data

    assert wide.shape == (8, 5) and torch.equal(wide[[0, 1, 2, 4, 5, 6]], rows) and not wide[[3, 7]].any()
    assert narrow.shape == (5, 8) and torch.equal(narrow[:, [0, 1, 2, 4, 5, 6]], columns) and not narrow[:, [3, 7]].any()
    assert torch.equal(pick(rows[:, 0], order, dim=0), wide[:, 0]), "biases are padded as weights are"


@pytest.mark.parametrize("interleaved", [True, False])
def test_what_turns_of_a_latent_head_comes_first(interleaved: bool) -> None:
    latent, rope = LatentAttention(query_rank=None, rank=5, plain_dims=3, norm_eps=1e-6), Rope(dims=4, interleaved=interleaved)
    stored = torch.arange(2 * 7 * 5, dtype=torch.float32).view(2, 7, 5)
    turning = [3, 5, 4, 6] if interleaved else [3, 4, 5, 6]

    queries = DenseWeight(stored.flatten(0, 1)).rows(latent_queries(latent, rope, 2, 8)).data.view(2, 8, 5)
    up = torch.arange(2 * 9 * 5, dtype=torch.float32).view(2, 9, 5) + 1
    keys, values = DenseWeight(up.flatten(0, 1)).rows(latent_keys_and_values(latent, rope, 6, 2, 8)).data.view(2, 2, 8, 5)

    assert torch.equal(queries[:, :7], stored[:, [*turning, 0, 1, 2]]) and not queries[:, 7].any()
    assert torch.equal(keys[:, 4:7], up[:, :3]) and not keys[:, :4].any() and not keys[:, 7].any()
    assert torch.equal(values[:, :6], up[:, 3:]) and not values[:, 6:].any()
