"""Settings are read from the environment and bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from sampler_svc.settings import Settings
from triserve.rpc.server import load_settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with what the settings look for."""
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_the_model_folder_is_all_that_must_be_said(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("SAMPLER_MODEL", str(model))
    settings = load_settings(Settings)
    assert (settings.model, settings.listen) == (model, "127.0.0.1:7400")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAMPLER_MODEL", "/does/not/exist"),
        ("SAMPLER_MODEL", str(Path(__file__).parent)),
        ("SAMPLER_LISTEN", "nowhere"),
        ("SAMPLER_MAX_OPEN_REQUESTS", "0"),
        ("SAMPLER_MAX_QUEUED_FRAMES", "0"),
        ("SAMPLER_DRAIN_TIMEOUT_S", "-1"),
    ],
)
def test_a_bad_value_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, variable: str, value: str
) -> None:
    monkeypatch.setenv("SAMPLER_MODEL", str(model))
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit):
        load_settings(Settings)
    assert f"{variable}='{value}'" in capsys.readouterr().err
