"""Settings: defaults, environment, and refusals that name the variable."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.settings import Settings
from triserve.rpc.server import load_settings


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = write_model_folder(tmp_path / "model")
    monkeypatch.setenv("TOKENIZER_MODEL", str(folder))
    return folder


def test_the_model_folder_is_all_that_is_needed(model_folder: Path) -> None:
    settings = load_settings(Settings)
    assert settings.model == model_folder
    assert settings.listen == "127.0.0.1:7200"
    assert settings.max_input_bytes == 4 * 1024 * 1024
    assert settings.threads is None


def test_allowed_arguments_are_separated_by_commas(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZER_TEMPLATE_ALLOWED_ARGUMENTS", "enable_thinking, effort,")
    assert load_settings(Settings).template_allowed_arguments == ("enable_thinking", "effort")
    monkeypatch.setenv("TOKENIZER_TEMPLATE_ALLOWED_ARGUMENTS", "")
    assert load_settings(Settings).template_allowed_arguments == ()


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "namespace", "range", "a-b", "1x"]
)
def test_an_argument_that_would_change_the_template_s_own_meaning_cannot_be_allowed(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("TOKENIZER_TEMPLATE_ALLOWED_ARGUMENTS", f"enable_thinking,{name}")
    with pytest.raises(SystemExit) as caught:
        load_settings(Settings)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "TOKENIZER_TEMPLATE_ALLOWED_ARGUMENTS" in shown and name in shown


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MODEL", "/nowhere/at/all"),
        ("LISTEN", "nowhere"),
        ("MAX_INPUT_BYTES", "1"),
        ("MAX_INPUT_BYTES", "99999999999"),
        ("THREADS", "0"),
        ("INLINE_BYTES", "-1"),
        ("MAX_MESSAGES", "many"),
        ("DRAIN_TIMEOUT_S", "-1"),
        ("RENDER_TIMEOUT_S", "0"),
        ("MAX_QUEUED_BYTES", "2048"),
    ],
)
def test_a_wrong_value_is_refused_by_variable(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv(f"TOKENIZER_{variable}", value)
    with pytest.raises(SystemExit):
        load_settings(Settings)
    assert f"TOKENIZER_{variable}=" in capsys.readouterr().err


def test_a_folder_without_fast_tokenizer_is_refused(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    with pytest.raises(ValidationError, match=r"no tokenizer\.json"):
        Settings(model=model_folder)


def test_settings_never_change(model_folder: Path) -> None:
    with pytest.raises(ValidationError):
        setattr(load_settings(Settings), "threads", 3)  # noqa: B010 - the type checker knows it is frozen
