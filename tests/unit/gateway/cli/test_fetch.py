"""A pod has the model it was told to have, whole, or none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from gateway.cli.fetch import FetchFailed, fetch, read_sums

FILES = {"config.json": b"{}", "tokenizer.json": b"{1}", "model.safetensors": b"weights", "chat_template.jinja": b"x", "run.py": b"evil"}


def digest(name: str) -> str:
    return hashlib.sha256(FILES[name]).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def no_download(model: str, revision: str, patterns: Sequence[str]) -> str:
    raise AssertionError(f"{model} was to be downloaded")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if not file.name.startswith(".")}


def test_what_serving_needs_is_put_there_and_nothing_else(source: Path, tmp_path: Path) -> None:
    fetch(str(source), "main", tmp_path / "model", sums={}, small=False, download=no_download)
    assert names(tmp_path / "model") == set(FILES) - {"run.py"}
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"weights"


def test_a_tokenizer_s_pod_gets_no_weights_and_need_not_know_their_sums(source: Path, tmp_path: Path) -> None:
    fetch(
        str(source),
        "main",
        tmp_path / "model",
        sums={name: digest(name) for name in FILES if name != "run.py"},
        small=True,
        download=no_download,
    )
    assert names(tmp_path / "model") == {"config.json", "tokenizer.json", "chat_template.jinja"}


def test_a_revision_of_the_hub_is_asked_for_by_name(source: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, str, list[str]]] = []

    def download(model: str, revision: str, patterns: Sequence[str]) -> str:
        asked.append((model, revision, list(patterns)))
        return str(source)

    for _ in range(2):
        fetch("org/name", "abc123", tmp_path / "model", sums={}, small=True, download=download)
    assert asked == [("org/name", "abc123", ["*.json", "*.jinja"])], "what is there is not fetched again"
    fetch("org/name", "def456", tmp_path / "model", sums={}, small=True, download=download)
    assert len(asked) == 2


def test_a_file_that_is_another_one_is_refused_and_nothing_counts_as_fetched(source: Path, tmp_path: Path) -> None:
    into = tmp_path / "model"
    with pytest.raises(FetchFailed, match=r"model\.safetensors has the sha256"):
        fetch(str(source), "main", into, sums={"model.safetensors": "0" * 64}, small=False, download=no_download)
    assert "model.safetensors" not in names(into) and not any(name.endswith(".part") for name in names(into))
    fetch(str(source), "main", into, sums={"model.safetensors": digest("model.safetensors")}, small=False, download=no_download)
    assert "model.safetensors" in names(into)


def test_a_file_that_is_missing_is_named(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"no other\.json"):
        fetch(str(source), "main", tmp_path / "model", sums={"other.json": "0" * 64}, small=False, download=no_download)


def test_sums_are_read_as_sha256sum_prints_them(tmp_path: Path) -> None:
    file = tmp_path / "sums"
    file.write_text(f"{'a' * 64}  config.json\n{'b' * 64} *model.safetensors\n")
    assert read_sums(file) == {"config.json": "a" * 64, "model.safetensors": "b" * 64}
    file.write_text("nonsense\n")
    with pytest.raises(FetchFailed, match="line 1"):
        read_sums(file)
