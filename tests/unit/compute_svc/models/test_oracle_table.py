"""The oracle table says what it found: a difference anywhere is a FAIL, a line of its own and an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.oracle.__main__ import main
from tests.oracle.cases import Case, Oracle, transformers_cases
from tests.oracle.checks import CHECKS, TOLERANCE
from tests.oracle.table import compare

LLAMA = next(case for case in transformers_cases() if case.name == "llama/gqa")


class DifferingOracle:
    """Another oracle, but for one logit of the last token of every sequence."""

    def __init__(self, oracle: Oracle, difference: float) -> None:
        self._oracle = oracle
        self._difference = difference

    def logits(self, token_ids: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        logits = self._oracle.logits(token_ids, dtype).clone()
        logits[-1, -1] += self._difference
        return logits


def differing(difference: float) -> Case:
    """The case with an oracle that is off by so much."""
    return Case("llama", "differing", LLAMA.architecture, lambda folder: DifferingOracle(LLAMA.write(folder), difference), LLAMA.dtypes)


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
    assert document["cases"][0]["figures"]["logits"]["max_error"] <= document["limits"]["logits"]


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
