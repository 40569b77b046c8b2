"""Triton's prefill attention gives what the reference gives; in the interpreter where there is no GPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.triton_device import DEVICE

from compute_svc.kernels.kv_layer import KvLayer  # isort: skip
from compute_svc.kernels.prefill_attention import reference  # isort: skip
from compute_svc.kernels.prefill_attention.triton_kernel import prefill_attention  # isort: skip
from compute_svc.kernels.prefill_attention.triton_plan import Limits, Tiles, covers, flops, pack_of, plan_triton, tiles_for  # isort: skip
from tests.fakes.attention_cases import Shape, Store, moved, queries_of, store_of  # isort: skip

# (relative, absolute). 16-bit numbers are rounded where the reference does not: weights, and numbers of codes.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2), torch.float16: (2e-3, 2e-3)}
LENGTHS = [1, 15, 17, 63, 150]
COUNTS = [1, 15, 1, 5, 80]
STARTS = list(itertools.accumulate(COUNTS, initial=3))


def run(q: torch.Tensor, store: Store, tiles: Tiles | None = None, sink_logits: torch.Tensor | None = None) -> torch.Tensor:
    """What the kernel writes into NaN, [rows, num_heads * D] on the CPU; rows STARTS[0] to STARTS[-1] are the requests'."""
    out = torch.full((len(q), store.spec.num_heads * store.spec.head_dim), torch.nan, dtype=q.dtype, device=DEVICE)
    plan = plan_triton(store.page_table.to(DEVICE), LENGTHS, STARTS, store.spec, tiles=tiles)
    logits = None if sink_logits is None else sink_logits.to(DEVICE)
    prefill_attention(q.to(DEVICE), moved(store.kv, str(DEVICE)), plan, out, logits)
    return out.cpu()


def assert_is_the_reference(
    q: torch.Tensor, store: Store, tiles: Tiles | None = None, sink_logits: torch.Tensor | None = None
) -> None:
    """Tells dtype, largest error and where it is; no row but the requests' is written."""
    got = run(q, store, tiles, sink_logits)
    expected = torch.empty(got.shape)
    plan = reference.plan_prefill(store.page_table, LENGTHS, STARTS, store.spec)
    reference.prefill_attention(q, store.kv, plan, expected, None, sink_logits)
    relative, absolute = TOLERANCES[q.dtype]
    torch.testing.assert_close(
        *(got[STARTS[0] : STARTS[-1]].float(), expected[STARTS[0] : STARTS[-1]]),
        rtol=relative,
        atol=absolute,
        msg=lambda text: f"prefill_attention in {q.dtype}: {text}",
    )
    assert got[: STARTS[0]].isnan().all() and got[STARTS[-1] :].isnan().all(), "rows of no request were written"


SHAPES = [
    pytest.param(Shape(2, 2, 16, 16, None), id="mha"),
    pytest.param(Shape(8, 2, 64, 16, None), id="gqa"),
    pytest.param(Shape(7, 1, 32, 16, None), id="group-of-7"),
    pytest.param(Shape(4, 2, 16, 16, 20), id="window"),
    pytest.param(Shape(4, 2, 16, 16, 1), id="narrowest-window"),
    pytest.param(Shape(4, 2, 16, 16, 100), id="window-over-a-tile"),
    pytest.param(Shape(4, 2, 16, 1, None), id="one-token-pages"),
    pytest.param(Shape(4, 2, 16, 24, 40), id="odd-pages"),
    pytest.param(Shape(4, 2, 16, 256, None), id="pages-longer-than-tiles"),
    pytest.param(Shape(4, 2, 16, 16, None, (0.5, 0.25, 0.125, 0.01)), id="slopes"),
    pytest.param(Shape(4, 2, 16, 16, None, None, 1.5), id="softcap"),
    pytest.param(Shape(2, 1, 16, 16, 50, (0.5, 0.25), 2.0), id="slopes-softcap-window"),
    pytest.param(Shape(4, 2, 80, 16, None), id="heads-of-80"),
    pytest.param(Shape(4, 2, 96, 16, None), id="heads-of-96"),
    pytest.param(Shape(2, 1, 256, 16, None), id="heads-of-256"),
]
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
SMALL_TILES = Tiles(32, 32, 4, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_prefill_attention_is_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    tiles = SMALL_TILES if dtype == torch.bfloat16 else None
    assert_is_the_reference(queries_of(STARTS[-1] + 2, shape, dtype), store_of(shape, LENGTHS, dtype), tiles)
