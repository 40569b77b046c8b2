"""The oracle table says what it found: a difference anywhere is a FAIL, a line of its own and an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.models.causal_lm import CausalLM
from tests.fakes.checkpoints import save_checkpoint
from tests.oracle.__main__ import main
from tests.oracle.cases import Case, Oracle, TransformersOracle, transformers_cases
from tests.oracle.checks import CHECKS, TOLERANCE
from tests.oracle.table import compare

LLAMA = next(case for case in transformers_cases() if case.name == "llama/gqa")


class DifferingOracle:
    """Another oracle, but for one logit of the last token of every sequence, which is off by so much of the spread of all."""

    def __init__(self, oracle: Oracle, difference: float) -> None:
        self._oracle = oracle
        self._difference = difference

    def logits(self, token_ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        logits = self._oracle.logits(token_ids, dtype).clone()
        logits[-1, -1] += self._difference * logits.std()
        return logits


def differing(difference: float, case: Case = LLAMA) -> Case:
    """A case with an oracle that is off by so much."""
    return Case("llama", "differing", case.architecture, lambda folder: DifferingOracle(case.write(folder), difference), case.dtypes)


def quiet(divisor: float) -> Case:
    """The case of a model that divides its logits: a Granite."""
    granite = next(case for case in transformers_cases() if case.family == "granite")

    def write(folder: Path) -> Oracle:
        return TransformersOracle(save_checkpoint(folder, "granite", logits_scaling=divisor))

    return Case("granite", "quiet", granite.architecture, write)


def refused() -> Case:
    """The case of an architecture that this engine does not have."""

    def write(folder: Path) -> Oracle:
        oracle = LLAMA.write(folder)
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["NobodysForCausalLM"]}))
        return oracle

    return Case("llama", "refused", "NobodysForCausalLM", write)


def test_a_difference_above_the_limit_fails_and_one_below_it_does_not() -> None:
    above, below = compare(differing(2 * TOLERANCE), ["logits"]), compare(differing(0.5 * TOLERANCE), ["logits"])

    assert above.cells == {"logits": "FAIL"} and "off by" in above.failures["logits"]
    assert not below.failures and 0.4 * TOLERANCE < below.figures["logits"]["max_error"] < 0.6 * TOLERANCE


@pytest.mark.parametrize("divisor", [1.0, 1000.0])
def test_a_model_that_divides_its_logits_is_checked_as_strictly(divisor: float) -> None:
    above, right = compare(differing(2 * TOLERANCE, quiet(divisor)), ["logits"]), compare(quiet(divisor), ["logits"])

    assert above.cells == {"logits": "FAIL"}
    assert not right.failures


def test_logits_that_depend_on_the_batch_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = CausalLM.forward

    def dependent(self: CausalLM, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        return forward(self, batch, kv) * (1 + 1e-6 * (batch.num_requests > 1))

    monkeypatch.setattr(CausalLM, "forward", dependent)

    line = compare(LLAMA, ["logits", "invariance"])

    assert line.cells["invariance"] == "FAIL" and "logits" not in line.failures
    assert "in pieces beside others" in line.failures["invariance"] and "decoded alone" not in line.failures["invariance"]


def test_a_checkpoint_that_cannot_be_loaded_fails_all_its_checks_by_name() -> None:
    line = compare(refused(), list(CHECKS))

    assert set(line.cells.values()) == {"FAIL"}
    assert all("NobodysForCausalLM" in failure for failure in line.failures.values())


def test_a_check_the_oracle_cannot_be_asked_for_is_a_dash() -> None:
    case = Case("llama", "float32", LLAMA.architecture, LLAMA.write, (torch.float32,))

    assert compare(case, ["bfloat16"]).cells == {"bfloat16": "-"}


def test_the_table_has_a_line_for_each_case_and_the_exit_status_tells_of_failures(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = tmp_path / "results" / "oracle.json"

    assert main(["llama/g*", "--check", "logits", "prefix", "--json", str(results)], [LLAMA, refused()]) == 0
    header, line, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["case", "logits", "prefix"] and line.startswith("llama/gqa") and "ok" in line
    assert main(["llama", "--check", "logits", "--json", str(results)], [LLAMA, refused()]) == 1
    assert "llama/refused logits: UnsupportedModel" in capsys.readouterr().out
    document = json.loads(results.read_text())
    assert document["failed"] == 1 and [one["case"] for one in document["cases"]] == ["llama/gqa", "llama/refused"]
    assert document["cases"][0]["figures"]["logits"]["max_error"] <= document["limits_of_spread"]["logits"]


def test_a_family_stands_for_all_its_types_of_model(capsys: pytest.CaptureFixture[str]) -> None:
    known = [case for case in transformers_cases() if case.name in ("olmo2/gqa", "olmoe/mha", "llama/gqa")]

    assert main(["olmo", "--check", "logits"], known) == 0

    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert lines == ["olmo2/gqa", "olmoe/mha"]


def test_a_case_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["llama/nonsense"], [LLAMA])

    assert exit_status.value.code == 2 and "llama/nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_a_device_that_cannot_compute_is_refused(device: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["--device", device], [LLAMA])

    assert exit_status.value.code == 2 and f"--device {device} cannot compute here" in capsys.readouterr().err


def test_results_name_the_device(tmp_path: Path) -> None:
    assert main(["--device", "cpu", "--check", "logits", "--json", str(tmp_path / "table.json")], [LLAMA]) == 0
    assert json.loads((tmp_path / "table.json").read_text())["device"]["name"] == "cpu"
