"""The GPU's benches where there is none: what fails is told and keeps nothing else from running, and what is counted is counted right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.dense_weight import DenseWeight
from tests.bench.gpu import comparisons, fast_decode, kernels, merge_step
from tests.bench.gpu.cases import Case, Prepared, Rows, key_of, table
from tests.bench.gpu.ceilings import Ceilings, tensor_bytes
from tests.bench.gpu.random_model import FORMS, RandomWeights
from tests.bench.gpu.shapes import Prefill
from tests.bench.gpu.step_trace import part_of
from tests.bench.gpu.timing import num_sets

CPU = torch.device("cpu")
CEILINGS = Ceilings(bytes_per_s=1e9, bf16=1e12, int8=2e12, fp8=2e12, sheet_bytes_per_s=None)


def _case(name: str, computed: float, wanted: float = 1.0, who: str = "ours") -> Case:
    return Case("rows", name, "1", who, 1000.0, _prepare(computed, wanted))


def _prepare(computed: float, wanted: float) -> Callable[[], Prepared]:
    return lambda: Prepared([lambda: None], lambda: torch.tensor([computed]), lambda: torch.tensor([wanted]))


def _raising(name: str) -> Case:
    def prepare() -> Prepared:
        raise NotImplementedError("no such kernel")

    return Case("rows", name, "1", "ours", 1000.0, prepare)


def test_what_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows = Rows(CPU, CEILINGS, output=tmp_path / "rows.json")
    rows.add([_raising("absent"), _case("wrong", 1.5), _case("unwritten", torch.nan), _case("right", 1.0)])

    absent, wrong, unwritten, right = rows.found
    assert absent["failed"] == "NotImplementedError: no such kernel" and "us" not in absent
    assert wrong["failed"].startswith("off by 0.5") and wrong["us"] > 0
    assert unwritten["failed"].startswith("off by nan")
    assert "failed" not in right and right["us"] > 0 and right["percent_of_ceiling"] == pytest.approx(100 / right["us"], rel=0.05)
    assert [key_of(row) for row in json.loads((tmp_path / "rows.json").read_text())] == [key_of(row) for row in rows.found]


def test_what_broke_a_device_is_not_run_again() -> None:
    rows = Rows(CPU, CEILINGS, frozenset({("rows", "breaks", "1", "ours")}))
    rows.add([_case("breaks", 1.0), _case("right", 1.0)])
    assert rows.found[0]["failed"].startswith("skipped") and "failed" not in rows.found[1]


def test_a_case_that_does_not_end_is_told_by_what_was_written_before_it(tmp_path: Path) -> None:
    def prepare() -> Prepared:
        raise KeyboardInterrupt

    rows = Rows(CPU, output=tmp_path / "rows.json")
    with pytest.raises(KeyboardInterrupt):
        rows.add([_case("right", 1.0), Case("rows", "hangs", "1", "ours", 1.0, prepare)])
    assert json.loads((tmp_path / "rows.json").read_text())[-1] == {
        "part": "rows", "name": "hangs", "load": "1", "who": "ours", "failed": "did not end",
    }  # fmt: skip


def test_a_table_has_a_line_for_each_kernel_and_a_column_for_each_load() -> None:
    found: list[dict[str, Any]] = [
        {"part": "decode", "name": "bf16", "load": "1x8", "who": "ours", "us": 12.5, "percent_of_ceiling": 80.4},
        {"part": "decode", "name": "bf16", "load": "2x8", "who": "ours", "failed": "KeyError"},
        {"part": "decode", "name": "bf16", "load": "2x8", "who": "sdpa", "us": 3.0, "percent_of_ceiling": 10.0, "failed": "off by 1"},
    ]
    assert [line.split() for line in table(found)] == [
        ["decode", "1x8", "2x8"],
        ["bf16", "ours", "12.5", "80%", "FAILED"],
        ["bf16", "sdpa", "-", "3.0", "10%!"],
    ]


def test_a_limit_is_that_of_memory_or_of_arithmetic() -> None:
    assert CEILINGS.limit_s(2e9) == 2.0
    assert CEILINGS.limit_s(1e9, 4e12) == 4.0 and CEILINGS.limit_s(1e9, 4e12, "int8") == 2.0


def test_tensors_that_share_memory_count_once() -> None:
    whole = torch.zeros(10, 4)
    assert tensor_bytes((whole, whole)) == 160
    assert tensor_bytes([whole[:5], whole[5:]]) == 160
    assert tensor_bytes([DenseWeight(whole[:5]), whole[:5]]) == 80


def test_inputs_rotate_until_they_are_large_enough() -> None:
    assert num_sets(100, 0) == 1 and num_sets(100, 250) == 3 and num_sets(1e9, 250) == 1 and num_sets(1, 1 << 30) == 48


def test_kernels_are_told_apart_by_their_names() -> None:
    names = {
        "decode_kernel": "attention",
        "nvjet_tst_128x8_64x12_2x1_v_bz_TNT": "products",
        "int_linear_kernel": "products",
        "quantise_rows_kernel": "norms, activations",
        "place_heads_kernel": "rotary and KV write",
        "Memcpy DtoH (Device -> Pinned)": "copies",
        "void at::native::vectorized_elementwise_kernel<8, add>": "other",
    }
    assert {name: part_of(name) for name in names} == names


def test_a_prefill_says_what_is_before_it() -> None:
    assert str(Prefill(1, 2048)) == "1x2048" and str(Prefill(1, 512, 8192)) == "1x512+8192"


@pytest.mark.parametrize("form", list(FORMS))
def test_random_weights_are_rounded_but_for_the_embeddings_and_the_head(form: str) -> None:
    weights = RandomWeights("tiny", CPU, FORMS[form])
    rounded = weights.weight("model.layers.0.mlp.up_proj.weight", torch.float32, CPU)
    exact = weights.read("model.layers.0.mlp.up_proj.weight", torch.float32, CPU)
    assert isinstance(rounded, CodedWeight)
    error = (rounded.dense(torch.float32) - exact).norm() / exact.norm()
    assert error < {"int8": 0.01, "int4": 0.15, "fp8": 0.04}[form]
    assert isinstance(weights.weight("lm_head.weight", torch.float32, CPU), DenseWeight)


def test_the_plain_decode_computes_what_the_engine_does() -> None:
    with torch.inference_mode():
        assert fast_decode.check(CPU) < 1e-5


def test_kernels_are_checked_and_timed_at_small_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "kernels.json"
    assert kernels.main(["--device", "cpu", "--trial", "--no-check", "--part", "products-w8a8", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert {row["who"] for row in rows} == {"ours", "alone", "_int_mm"} and all(row["error"] < 1e-2 for row in rows)
    assert "w8a8 qkv ours" in capsys.readouterr().out


def test_a_check_goes_on_from_some_case_and_writes_every_row(tmp_path: Path) -> None:
    output = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--trial", "--check", "--part", "products-bf16", "--output", str(output)]
    assert kernels.main(arguments) == 0
    every = json.loads(output.read_text())
    assert kernels.main([*arguments, "--begin-at", "2"]) == 0
    assert [key_of(row) for row in json.loads(output.read_text())] == [key_of(row) for row in every[2:]]


def _baseline(rates: dict[tuple[str, int], float], device: str = "NVIDIA H200") -> str:
    """A results file of some tokens a second, by format of keys and values and requests at once."""
    decode = [
        {"kv": kv, "requests": requests, "engine": {"tokens_per_s": {"median": rate}}, "limit": {"percent": rate / 2}}
        for (kv, requests), rate in rates.items()
    ]
    return json.dumps({"device": {"name": device}, "torch": "2.11.0", "decode": decode, "prefill": []})


def test_targets_and_switches_are_told_from_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "gpu_baseline_8b.json").write_text(_baseline({("bfloat16", 1): 100.0, ("bfloat16", 64): 120.0, ("int8-g64", 64): 150.0}))
    (tmp_path / "gpu_baseline_8b_int8.json").write_text(_baseline({("bfloat16", 1): 180.0}))
    (tmp_path / "gpu_no_graphs.json").write_text(_baseline({("bfloat16", 1): 50.0}, "NVIDIA H100"))
    comparisons.main(tmp_path)

    lines = (tmp_path / comparisons.RESULTS).read_text().splitlines()
    assert "| 8B, bfloat16, 1 request | 75 % | 50.0 % | 100 | NVIDIA H200, torch 2.11.0 |" in lines
    assert "| 8B, bfloat16, 256 requests | 65 % | not measured |  |  |" in lines
    assert "| W8A8 | 1 | 100 | 180 | 1.80 | limit +86 % | NVIDIA H200, torch 2.11.0 |" in lines
    assert "| KV in int8-g64 | 64 | 120 | 150 | 1.25 |  | NVIDIA H200, torch 2.11.0 |" in lines
    assert "| run-ahead |  |  |  | not measured |  |  |" in lines
    assert (
        "| CUDA graphs and run-ahead | 1 | 50 | 100 | different devices |  | NVIDIA H100, torch 2.11.0, NVIDIA H200, torch 2.11.0 |"
        in lines
    )


def test_merged_steps_are_compared_with_prompts_apart_on_a_device(tmp_path: Path) -> None:
    output = tmp_path / "gpu_merge_step.json"
    load = ["--requests", "4", "--at-once", "2", "--longest", "20", "--rounds", "1"]
    merge_step.main(["--device", "cpu", "--shape", "tiny", *load, "--output", str(output)])
    comparisons.main(tmp_path)
    rows = json.loads(output.read_text())["rows"]
    assert {(row["off"], row["on"]) for row in rows} == {("prompts apart", "merged")} and len(rows) == 6
    assert "| merge step |" in (tmp_path / comparisons.RESULTS).read_text()
