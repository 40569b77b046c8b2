"""`triserve quantize` makes folders that can be served, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gateway.cli.__main__ import main
from tests.fakes.checkpoints import save_checkpoint
from tests.quality.windows import CALIBRATION

TINY = Path(__file__).parents[2] / "tiny_model"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of random weights with the tiny model's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(folder, "llama", num_hidden_layers=1, vocab_size=4096, hidden_size=96, head_dim=16)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def quantize(*arguments: str | Path) -> int | str | None:
    """The exit status."""
    with pytest.raises(SystemExit) as ended:
        main(["quantize", *map(str, arguments)])
    return ended.value.code


def test_a_calibrated_folder_has_all_that_serving_needs_and_progress_is_told_in_lines(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    options = ("--weights", "int4", "--method", "gptq", "--calibration", CALIBRATION, "--calibration-tokens", "1024", "--kv", "int8")
    assert quantize(model, out, *options) == 0
    said = capsys.readouterr()
    assert f"triserve up --model {out}" in said.out
    assert "quantised 100 %" in said.err
    assert "note: matrices of 96 inputs have groups of 32" in said.err
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert json.loads((out / "config.json").read_text())["triserve_kv_format"] == "int8-g32"
    assert [path.name for path in out.parent.iterdir()] == ["folder"]


def test_what_cannot_be_quantised_leaves_nothing_behind_and_says_why(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder"
    assert quantize(model, out, "--weights", "int4", "--activations", "fp8") == 1
    assert capsys.readouterr().err.endswith("triserve quantize: --activations fp8 does not go with --weights int4: float or int8 does\n")
    assert quantize(model, out, "--weights", "int4", "--method", "awq") == 1
    assert "--calibration FILE comes with a --method other than rtn, and that with it; --method is awq" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
    out.mkdir()
    assert quantize(model, out, "--weights", "int8") == 1
    assert capsys.readouterr().err == f"triserve quantize: {out} exists already\n"
