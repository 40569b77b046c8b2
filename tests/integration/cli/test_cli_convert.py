"""`triserve convert` makes folders that can be served, whole or not at all."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from gateway.cli.__main__ import main
from gateway.cli.convert import ConversionFailed, convert
from gateway.cli.model_files.model_folder import ModelUnavailable, resolve_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.gguf_files import write_gguf
from triserve.rpc.fingerprint import fingerprint_of

_VOCABULARY = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(94))],
    "tokenizer.ggml.scores": [0.0] * 97,
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 94],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def no_download(model: str) -> str:
    raise AssertionError(f"{model} was to be downloaded")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    published = tmp_path / "published"
    published.mkdir()
    save_checkpoint(published, "llama")
    write_gguf(published, tmp_path / "small.gguf", metadata=_VOCABULARY)
    return tmp_path / "small.gguf"


@pytest.mark.parametrize("weights", ["linked", "safetensors"])
def test_a_gguf_file_becomes_a_folder_that_can_be_served(
    weights: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "folder"
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(file), str(folder), "--weights", weights, "--temperature", "0.5"])
    assert ended.value.code == 0
    assert f"triserve up --model {folder}" in capsys.readouterr().out
    assert resolve_model(str(folder), no_download, {}).folder == folder
    fingerprint = fingerprint_of(folder)
    assert fingerprint.tokenizer_sha256 and fingerprint.weights_revision
    assert '"temperature": 0.5' in (folder / "generation_config.json").read_text()
    assert [path.name for path in folder.parent.iterdir()] == ["folder"]


def test_other_weights_in_the_file_are_another_revision(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "folder")
    before = fingerprint_of(tmp_path / "folder").weights_revision
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint_of(tmp_path / "folder").weights_revision != before


def test_up_converts_a_file_once_and_anew_when_it_changes(file: Path, tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    first = resolve_model(str(file), no_download, environment)
    assert (first.name, resolve_model(str(file), no_download, environment)) == ("small", first)
    file.write_bytes(file.read_bytes() + b"\0")
    assert resolve_model(str(file), no_download, environment).folder != first.folder


def test_a_published_checkpoint_of_old_forms_is_converted_once(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    save_checkpoint(source, "llama")
    tensors = load_file(source / "model.safetensors")
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    content = io.BytesIO()
    lines = iter(["one two three four five six"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=content, model_type="bpe", vocab_size=40, minloglevel=2, hard_vocab_limit=False
    )
    (source / "tokenizer.model").write_bytes(content.getvalue())
    with pytest.raises(ModelUnavailable, match=r"has tokenizer\.model and pytorch_model\*\.bin, to be converted once: triserve convert"):
        resolve_model(str(source), no_download, {})
    convert(source, folder)
    assert resolve_model(str(folder), no_download, {}).folder == folder
    written = load_file(folder / "model.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)


def test_what_cannot_be_converted_leaves_nothing_behind(file: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "notes.txt").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, message in (
        (damaged, "is it cut off"),
        (tmp_path / "notes.txt", "its name does not end in .gguf"),
        (tmp_path / "absent", "neither a file nor a folder"),
        (empty, "lacks config.json"),
    ):
        with pytest.raises(ConversionFailed, match=message):
            convert(source, work / "folder")
        assert not list(work.iterdir())
    shutil.copytree(empty, work / "folder")
    with pytest.raises(ConversionFailed, match="exists already"):
        convert(file, work / "folder")
