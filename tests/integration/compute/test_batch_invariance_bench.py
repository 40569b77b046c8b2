"""The bench of batch invariance: a run from end to end, and kernels that are swapped in compute the same and leave no trace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compute_svc.kernels.linear.cpu import onednn_takes
from compute_svc.kernels.linear.native import takes_floats
from compute_svc.layers import attention, mlp
from compute_svc.models import causal_lm, loading
from tests.bench.engine.batch_invariance import main
from tests.bench.engine.natural_kernels import natural_kernels, onednn_weights, plain_weights
from tests.bench.gpu.device_checks import whole_logits
from tests.bench.gpu.random_model import RandomWeights, build_random

CPU = torch.device("cpu")
WAYS = {"invariant", "natural", "natural packed"}
_COMPUTING_NAMES = [
    *("linear", "decode_attention", "prefill_attention"),
    *("linear", "padded_count", "plan_decode", "plan_prefill"),
    *("linear", "gated_linear", "padded_count"),
]


def test_a_run_proves_measures_and_writes(tmp_path: Path) -> None:
    output = main(["--shape", "tiny", "--rounds", "2", "--sample-ms", "1", "--context", "40", "--output", str(tmp_path / "bits.json")])
    found = json.loads(output.read_text())

    assert found["model"] == "tiny" and set(found["dtypes"]) == {"float32", "bfloat16"}
    for compared in found["dtypes"].values():
        assert all(way["equal_bits"] for way in compared["bits"]["invariant"].values())
        assert set(compared["steps"]) == {"decode 1", "decode 8", "decode 64", "prefill 1x512", "prefill 8x128"}
        for step in compared["steps"].values():
            assert set(step["step_ms"]) == set(step["tokens_per_s"]) == WAYS
            assert all(0 < one["min"] <= one["median"] <= one["max"] for one in step["step_ms"].values())
    largest = [max(step["logits_differ_by"].values()) for step in found["dtypes"]["float32"]["steps"].values()]
    assert all(difference <= 1e-4 for difference in largest) and max(largest) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_natural_kernels_compute_the_same_but_for_rounding(dtype: torch.dtype) -> None:
    weights = RandomWeights("tiny", CPU)
    model = build_random(weights, dtype, CPU)
    with plain_weights():
        plain = build_random(weights, dtype, CPU)
    with onednn_weights():
        blocked = build_random(weights, dtype, CPU)
    in_blocks = "onednn" if onednn_takes(dtype) else "plain"
    for built, layout in ((model, "panels" if takes_floats(dtype) else in_blocks), (plain, "plain"), (blocked, in_blocks)):
        assert built.head is not None and built.head.projection.layout == layout
    tokens = torch.arange(100)
    expected = whole_logits(model, tokens)
    for natural in (plain, blocked):
        with natural_kernels():
            error = (whole_logits(natural, tokens) - expected).abs().max() / expected.std()
        assert 0 < error < 0.1, "other kernels round otherwise"
    assert torch.equal(whole_logits(model, tokens), expected)


def test_kernels_are_put_back_after_a_failure() -> None:
    modules = [vars(module) for module in (attention, causal_lm, loading, mlp)]
    before = [dict(module) for module in modules]
    with pytest.raises(RuntimeError, match="on the way"), natural_kernels(), plain_weights():
        changed = [name for module, old in zip(modules, before, strict=True) for name in old if module[name] is not old[name]]
        assert sorted(changed) == sorted([*_COMPUTING_NAMES, "pack_stored"])
        raise RuntimeError("on the way")
    assert [dict(module) for module in modules] == before
