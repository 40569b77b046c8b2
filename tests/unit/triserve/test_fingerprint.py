"""Fingerprints: the same folder gives the same one, any other tokenizer or weights another."""

from __future__ import annotations

from pathlib import Path

import pytest

from triserve.rpc.errors import FingerprintMismatch
from triserve.rpc.fingerprint import fingerprint_of, require_same
from triserve.v1 import common_pb2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return tmp_path


def test_the_same_folder_gives_the_same_fingerprint(folder: Path) -> None:
    assert fingerprint_of(folder) == fingerprint_of(folder)


def test_a_folder_without_weights_has_no_revision(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    fingerprint = fingerprint_of(folder)
    assert fingerprint.tokenizer_sha256
    assert fingerprint.weights_revision == ""


def test_another_tokenizer_changes_the_tokenizer_hash_alone(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "tokenizer.json").write_text('{"other": 1}')
    after = fingerprint_of(folder)
    assert after.tokenizer_sha256 != before.tokenizer_sha256
    assert after.weights_revision == before.weights_revision


@pytest.mark.parametrize("position", [0, -1])
def test_a_changed_byte_at_either_end_changes_the_revision(folder: Path, position: int) -> None:
    before = fingerprint_of(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[position] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert fingerprint_of(folder).weights_revision != before.weights_revision


def test_changed_config_changes_the_revision(folder: Path) -> None:
    before = fingerprint_of(folder)
    (folder / "config.json").write_text('{"rope_theta": 1}')
    assert fingerprint_of(folder).weights_revision != before.weights_revision


def test_peers_that_disagree_refuse_each_other() -> None:
    ours = common_pb2.Fingerprint(tokenizer_sha256="a" * 64, weights_revision="b" * 64)
    with pytest.raises(FingerprintMismatch, match="sampler 2 has tokenizer cccccccccccc, we have aaaaaaaaaaaa"):
        require_same(ours, common_pb2.Fingerprint(tokenizer_sha256="c" * 64), peer="sampler 2")
    with pytest.raises(FingerprintMismatch, match="weights"):
        require_same(ours, common_pb2.Fingerprint(tokenizer_sha256="a" * 64, weights_revision="d" * 64), peer="compute")


def test_a_peer_that_computes_otherwise_is_refused() -> None:
    ours = common_pb2.Fingerprint(tokenizer_sha256="a" * 64, computation="float32 on cpu")
    with pytest.raises(FingerprintMismatch, match="computes with bfloat16 on cpu, others with float32 on cpu"):
        require_same(ours, common_pb2.Fingerprint(tokenizer_sha256="a" * 64, computation="bfloat16 on cpu"), peer="compute 2")
    require_same(ours, common_pb2.Fingerprint(tokenizer_sha256="a" * 64), peer="tokenizer")


def test_a_peer_without_weights_is_judged_by_its_tokenizer_alone() -> None:
    ours = common_pb2.Fingerprint(tokenizer_sha256="a" * 64, weights_revision="b" * 64)
    require_same(ours, common_pb2.Fingerprint(tokenizer_sha256="a" * 64), peer="sampler")


def test_what_a_peer_says_of_itself_breaks_no_line_of_the_log_and_is_short() -> None:
    ours = common_pb2.Fingerprint(tokenizer_sha256="ab", computation="float32 on cpu")
    for theirs in (
        common_pb2.Fingerprint(tokenizer_sha256="x\nERROR forged"),
        common_pb2.Fingerprint(tokenizer_sha256="ab", computation="\x1b[31m" + "y" * 10_000),
    ):
        with pytest.raises(FingerprintMismatch) as caught:
            require_same(ours, theirs, peer="sampler")
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 300
