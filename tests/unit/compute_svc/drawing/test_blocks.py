"""Blocks cover every id once, and rank keys order ids as the contract ranks them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.drawing import blocks


@pytest.mark.parametrize("width", [1, 16, 255, 257, 4095, 4096, 4097, 8192, 10000])
def test_every_id_is_in_one_block_whose_maximum_bounds_it(width: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(width).permutation(width).astype(np.float32)[None])
    num = blocks.count(width)
    maxima = blocks.maxima(logits)
    ids, values = blocks.gather(logits, torch.arange(num)[None])
    real = ids < width
    assert sorted(ids[real].tolist()) == list(range(width))
    assert torch.equal(values[real], logits[0, ids[real]]) and (values[~real] == -torch.inf).all()
    assert torch.equal(values.amax(dim=2), maxima) and maxima.shape == (1, num)


def test_rows_of_a_wider_tensor_are_read_where_they_lie() -> None:
    wide = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blocks.maxima(wide[1:3, 500:8700]), blocks.maxima(wide[1:3, 500:8700].clone()))


FLOATS = st.floats(width=32, allow_nan=False)


@given(st.lists(FLOATS | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1, max_size=30))
def test_rank_keys_rise_by_falling_logit_and_then_by_rising_id(values: list[float]) -> None:
    logits, ids = torch.tensor(values, dtype=torch.float32), torch.arange(len(values))
    keys = blocks.rank_keys(logits, ids)
    expected = sorted(range(len(values)), key=lambda one: (-float(logits[one]), one))
    assert torch.argsort(keys).tolist() == expected
    assert torch.equal(blocks.ranked_ids(keys), ids) and torch.equal(blocks.ranked_logits(keys), logits)
    assert (keys < blocks.WORST).all() and (keys > blocks.BEST).all()
    assert blocks.ranked_logits(torch.tensor(blocks.WORST)).isnan()
