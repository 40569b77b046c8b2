"""Identity of a model folder: sha256 of its tokenizer, revision of its config and weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

from triserve.model_files.gguf_file import gguf_files
from triserve.rpc.errors import FingerprintMismatch
from triserve.v1 import common_pb2

_BLOCK_BYTES = 64 * 1024
_BLOCKS_PER_FILE = 64


def fingerprint_of(folder: Path) -> common_pb2.Fingerprint:
    """The fingerprint of a model folder.

    The revision hashes config.json and, of every safetensors file or else of every GGUF file, its name, its size and evenly spread blocks of its bytes with
    both ends among them: a folder of 140 GB takes milliseconds, and two sets of weights that differ as sets of weights do get
    different revisions. It is empty for a folder without weights.

    Args:
        folder: holds tokenizer.json, and config.json and *.safetensors or *.gguf where there are weights.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
    """
    tokenizer_sha256 = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    weights = sorted(folder.glob("*.safetensors")) or gguf_files(folder)
    if not weights:
        return common_pb2.Fingerprint(tokenizer_sha256=tokenizer_sha256)
    revision = hashlib.sha256((folder / "config.json").read_bytes())
    for path in weights:
        _hash_blocks(path, revision)
    return common_pb2.Fingerprint(tokenizer_sha256=tokenizer_sha256, weights_revision=revision.hexdigest())


def _hash_blocks(path: Path, digest: hashlib._Hash) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    last = max(0, size - _BLOCK_BYTES)
    with path.open("rb") as file:
        for offset in sorted({last * index // (_BLOCKS_PER_FILE - 1) for index in range(_BLOCKS_PER_FILE)}):
            file.seek(offset)
            digest.update(file.read(_BLOCK_BYTES))


def require_same(ours: common_pb2.Fingerprint, theirs: common_pb2.Fingerprint, *, peer: str) -> None:
    """Refuses a peer that serves another tokenizer or, where both know theirs, other weights or computes otherwise.

    Raises:
        FingerprintMismatch: naming the peer and both values.
    """
    if ours.tokenizer_sha256 != theirs.tokenizer_sha256:
        raise FingerprintMismatch(f"{peer} has tokenizer {_shown(theirs.tokenizer_sha256)}, we have {_shown(ours.tokenizer_sha256)}")
    if ours.weights_revision and theirs.weights_revision and ours.weights_revision != theirs.weights_revision:
        raise FingerprintMismatch(f"{peer} has weights {_shown(theirs.weights_revision)}, we have {_shown(ours.weights_revision)}")
    if ours.computation and theirs.computation and ours.computation != theirs.computation:
        raise FingerprintMismatch(
            f"{peer} computes with {_shown(theirs.computation, 64)}, others with {_shown(ours.computation, 64)}: answers would differ"
        )


def _shown(text: str, most: int = 12) -> str:
    """What a peer says of itself, as a line of the log may show it."""
    return ascii(text[:most])[1:-1]
