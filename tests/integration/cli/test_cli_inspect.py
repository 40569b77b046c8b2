"""`triserve inspect`: both stages say what they would make of a folder; one that is not installed, or refuses, is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import inspect
from gateway.cli.__main__ import main
from gateway.cli.inspect import Stage
from tests.fakes.checkpoints import edit_config, save_checkpoint
from tests.fakes.tokenizers import write_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder."""
    write_model_folder(tmp_path)
    save_checkpoint(tmp_path, "llama", vocab_size=2000)
    return tmp_path


def run(folder: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_both_stages_tell_what_they_would_serve(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 0
    shown = capsys.readouterr().out
    for words in ("LlamaForCausalLM", "512 tokens", "KV of a token", "ends of answers", "chat_template.jinja", "config.json, used: "):
        assert words in shown


def test_a_folder_that_a_stage_refuses_is_refused_with_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_config(folder, num_hidden_layers=4)
    assert run(folder) == 1
    shown = capsys.readouterr().out
    assert "compute: the tensors do not fit" in shown and "ends of answers" in shown


def test_a_stage_that_is_not_installed_is_named_with_its_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "STAGES", (Stage("compute", "compute_svc", "a_package_nobody_has"), inspect.STAGES[1]))
    assert run(folder) == 0
    shown = capsys.readouterr().out
    assert "compute: not installed: pip install 'triserve[compute]'" in shown and "ends of answers" in shown
