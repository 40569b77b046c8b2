"""Settings are read from GATEWAY_*, checked at the start and never changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.flow.limits import Limits
from gateway.settings import Settings
from triserve.rpc.server import load_settings


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKENIZERS", "127.0.0.1:1")
    monkeypatch.setenv("GATEWAY_COMPUTES", "a.b.svc:2, [::1]:3,")


def test_lists_are_separated_by_commas() -> None:
    settings = Settings()
    assert settings.tokenizers == ("127.0.0.1:1",)
    assert settings.computes == ("a.b.svc:2", "[::1]:3")
    assert settings.model_aliases == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS", ""),
        ("TOKENIZERS", "localhost"),
        ("COMPUTES", "a:1,a:1"),
        ("COMPUTES", "a:99999"),
        ("LISTEN", "8000"),
        ("MAX_N", "0"),
        ("REQUEST_TIMEOUT_S", "soon"),
        ("CACHE_SECRET", "short"),
        ("API_KEYS_FILE", "/nowhere/keys"),
    ],
)
def test_a_bad_value_ends_the_process_and_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(f"GATEWAY_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load_settings(Settings)
    assert caught.value.code == 2
    assert f"GATEWAY_{name}" in capsys.readouterr().err


def test_stages_are_looked_for_where_they_listen_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKENIZERS", "COMPUTES"):
        monkeypatch.delenv(f"GATEWAY_{name}")
    settings = Settings()
    assert (settings.tokenizers, settings.computes) == (("127.0.0.1:7200",), ("127.0.0.1:7300",))


def test_limits_are_the_settings_of_the_same_names() -> None:
    settings = Settings()
    assert settings.limits() == Limits()
    assert Limits.model_fields.keys() <= Settings.model_fields.keys()


def test_settings_are_frozen_and_described() -> None:
    with pytest.raises(ValidationError):
        Settings().max_n = 3  # type: ignore[misc]
    assert all(field.description for field in Settings.model_fields.values())


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_SECRET", "very secret indeed")
    monkeypatch.setenv("GATEWAY_REDIS_URL", "redis://:password@127.0.0.1")
    settings = Settings()
    assert "secret indeed" not in repr(settings)
    assert "password" not in repr(settings)
    config = settings.cache_config()
    assert (config.secret, config.redis_url) == (b"very secret indeed", "redis://:password@127.0.0.1")


def test_without_a_cache_secret_each_start_has_its_own() -> None:
    assert Settings().cache_config().secret != Settings().cache_config().secret


def test_keys_are_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("")
    monkeypatch.setenv("GATEWAY_API_KEYS_FILE", str(tmp_path / "keys"))
    assert Settings().api_keys_file == tmp_path / "keys"


def test_old_secrets_are_read_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CACHE_SECRET", "a secret of sixteen")
    monkeypatch.setenv("GATEWAY_CACHE_OLD_SECRETS", "the one before it, and the first one of all,")
    config = Settings().cache_config()
    assert config.secrets == (b"a secret of sixteen", b"the one before it", b"and the first one of all")


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("GATEWAY_TOOL_PARSER", ["auto", "hermes", "llama3", "pythonic", "mistral", "deepseek", "json", "harmony"]),
        ("GATEWAY_REASONING_PARSER", ["auto", "none", "think", "brackets", "thinking", "reasoning", "seed", "harmony"]),
    ],
)
def test_a_parser_that_is_not_known_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, variable: str, known: list[str]
) -> None:
    field = variable.removeprefix("GATEWAY_").lower()
    for name in known:
        monkeypatch.setenv(variable, name)
        assert getattr(Settings(), field) == name
    monkeypatch.setenv(variable, "xml")
    with pytest.raises(ValidationError) as refused:
        Settings()
    (error,) = refused.value.errors()
    assert error["loc"] == (field,)
    assert all(repr(name) in error["msg"] for name in known)
