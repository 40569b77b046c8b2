"""The baseline of a device: a run from end to end on the CPU, and checks that find what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.models.causal_lm import CausalLM
from tests.bench.gpu.device_baseline import main
from tests.bench.gpu.device_checks import EXACT_TOLERANCE, EngineReference, check_invariance, check_logits
from tests.bench.gpu.random_model import RandomWeights, build_random

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SMALL = ["--device", "cpu", "--sizes", "1", "3", "--context", "20", "--steps", "2", "--prefill", "1x40", "2x9", "--rounds", "2"]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return build_random(RandomWeights("tiny", CPU), torch.float32, CPU)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_checks_measures_and_writes(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = main([*SMALL, "--dtype", dtype, "--output", str(tmp_path / "results" / "cpu.json")])
    found = json.loads(output.read_text())

    assert found["device"]["name"] == "cpu" and found["model"] == "tiny" and found["dtype"] == dtype
    # Builds for CUDA say more of themselves than their package does.
    assert torch.__version__.startswith(found["torch"])
    assert found["checks"]["float32_tiny"]["beside"] == "transformers"
    assert 0 < found["checks"]["float32_tiny"]["logits"]["max_error_of_spread"] < EXACT_TOLERANCE
    assert all(way["equal_bits"] for way in found["checks"]["invariance"].values()) and len(found["checks"]["invariance"]) == 4
    assert [one["requests"] for one in found["decode"]] == [1, 3]
    assert [(one["prompts"], one["prompt_tokens"]) for one in found["prefill"]] == [(1, 40), (2, 9)]
    for one in (*found["decode"], *found["prefill"]):
        for runner in ("engine", "transformers"):
            rates = one[runner]["tokens_per_s"]
            assert 0 < rates["min"] <= rates["median"] <= rates["max"]
    assert str(output) in capsys.readouterr().out


def test_alone_it_is_held_against_itself_on_the_cpu(tmp_path: Path) -> None:
    found = json.loads(main([*SMALL, "--alone", "--output", str(tmp_path / "cpu.json")]).read_text())
    assert found["checks"]["float32_tiny"]["beside"] == "this engine on the CPU"
    assert "transformers" not in found["decode"][0] and found["decode"][0]["engine"]["tokens_per_s"]["median"] > 0


def test_rounded_weights_are_checked_and_every_kv_format_has_its_limit(tmp_path: Path) -> None:
    arguments = ["--alone", "--weights", "int8", "--kv", "auto", "int8-g8", "--output", str(tmp_path / "cpu.json")]
    found = json.loads(main([*SMALL, *arguments]).read_text())

    assert found["weight_format"] == "int8" and found["checks"]["int8_tiny"]["error_of_spread"] < 0.1
    assert [(one["kv"], one["requests"]) for one in found["decode"]] == [(kv, size) for kv in ("bfloat16", "int8-g8") for size in (1, 3)]
    exact, rounded = (found["decode"][index]["limit"] for index in (1, 3))
    assert exact["weight_bytes"] == rounded["weight_bytes"]
    # A head of 16 numbers: 32 bytes, or 16 and two scales.
    assert rounded["kv_bytes"] / exact["kv_bytes"] == 20 / 32
    assert all(one["limit"]["tokens_per_s"] > one["engine"]["tokens_per_s"]["median"] for one in found["decode"])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--prefill", "8*512"], "'8*512' is not COUNTxLENGTH"),
        (["--sizes", "1", "0"], "--sizes has 0, it must be at least 1"),
        (["--rounds", "0"], "--rounds is 0, it must be at least 1"),
        (["--shape", "huge"], "huge"),
        (["--model", "folder", "--weights", "int8"], "--weights is int8, a checkpoint's stay as they are"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cpu", *arguments])
    assert what in capsys.readouterr().err


def test_weights_are_the_same_at_every_reading_and_differ_from_each_other() -> None:
    weights = RandomWeights("tiny", CPU)
    first, second = (weights.read("model.layers.0.mlp.up_proj.weight", torch.float32, CPU) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, weights.read("model.layers.1.mlp.up_proj.weight", torch.float32, CPU))


def _scaled(model: CausalLM, scale: float) -> CausalLM:
    """The same model with louder logits."""
    assert model.head is not None
    return replace(model, head=replace(model.head, scale=scale))


def test_a_model_that_computes_something_else_is_found(model: CausalLM) -> None:
    louder = _scaled(model, 1.01)
    with pytest.raises(AssertionError, match="logits are off by"):
        check_logits(louder, EngineReference(model))


def test_loud_logits_are_allowed_the_same_part_of_their_spread(model: CausalLM) -> None:
    loud = _scaled(model, 100.0)
    off = _scaled(model, 100.0 * (1 + 1e-5))
    wrong = _scaled(model, 100.0 * (1 + 1e-3))

    found = check_logits(off, EngineReference(loud))

    assert 0 < found["max_error_of_spread"] < EXACT_TOLERANCE
    with pytest.raises(AssertionError, match="of their spread, the limit is"):
        check_logits(wrong, EngineReference(loud))


def _dependent(model: CausalLM, change: float) -> CausalLM:
    """The same model, but every logit differs by so much for each row that is asked for."""

    class Dependent(CausalLM):
        def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
            logits = CausalLM.forward(self, batch, kv)
            return logits * (1 + change * len(logits))

    return Dependent(model.config, model.embedding, model.layers, model.head, model.rotary, model.dtype, model.device)


def test_a_model_whose_bits_depend_on_its_neighbours_is_found(model: CausalLM) -> None:
    with pytest.raises(AssertionError, match="decoded_among_64: bits differ"):
        check_invariance(_dependent(model, 1e-6), promised=True)
    told = check_invariance(_dependent(model, 1e-6), promised=False)
    assert not told["decoded_among_64"]["equal_bits"] and told["from_a_cached_prefix"]["equal_bits"]
    assert 0 < told["decoded_among_64"]["max_difference"] < 1e-2
    with pytest.raises(AssertionError, match="of the logits' spread"):
        check_invariance(_dependent(model, 0.1), promised=False)


def test_a_machine_without_the_services_packages_is_enough() -> None:
    blocked = (
        "pydantic",
        "pydantic_settings",
        "aiohttp",
        "redis",
        "grpc_health",
        "grpc_reflection",
        "uvloop",
        "jinja2",
        "prometheus_client",
    )
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); import tests.bench.gpu.device_baseline, tests.oracle.__main__"
    path = os.pathsep.join((str(ROOT), str(ROOT / "protos")))
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    script = ROOT / "tests" / "bench" / "on_gpu.sh"
    done = subprocess.run(
        [script], env={**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, f"no GPU: {sys.executable} finds no CUDA device\n")
