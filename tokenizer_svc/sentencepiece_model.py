"""Reads a sentencepiece tokenizer.model into the words of GGUF metadata, from which tokenizers are built."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from tokenizer_svc.gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED
from tokenizer_svc.sentencepiece_proto import parse_model
from triserve.model_files.gguf_file import GgufFile
from triserve.model_files.gguf_header import GgufError, GgufHeader, Value

_FILE = "tokenizer.model"
_KINDS_OF_MODEL = {1: "t5", 2: "llama"}
# Ids that a checkpoint may leave out between the model's tokens and those added later.
_MAX_GAP = 1024


def read_sentencepiece(folder: Path) -> GgufFile:
    """The tokenizer of a checkpoint folder, as metadata without tensors.

    Args:
        folder: Holds tokenizer.model, and tokenizer_config.json where tokens were added.

    Raises:
        GgufError: A file is missing or is not what its name says.
    """
    model = _parse(folder / _FILE)
    config = _read_json(folder / "tokenizer_config.json")
    kind = _KINDS_OF_MODEL.get(model.trainer_spec.model_type)
    if kind is None:
        raise GgufError(f"{folder / _FILE} is neither a unigram nor a BPE model")
    tokens = [piece.piece for piece in model.pieces]
    kinds, scores = [piece.type for piece in model.pieces], [piece.score for piece in model.pieces]
    for token_id, token, special in _added(folder, config):
        if token_id < len(tokens):
            tokens[token_id], kinds[token_id] = token, CONTROL if special else USER_DEFINED
            continue
        if token_id - len(tokens) > _MAX_GAP:
            raise GgufError(f"{folder}: the added token {token[:80]!r} has the id {token_id}, there are {len(tokens)} tokens")
        while len(tokens) < token_id:
            tokens.append(f"<unused {len(tokens)}>")
            kinds.append(UNUSED)
        tokens.append(token)
        kinds.append(CONTROL if special else USER_DEFINED)
    scores += [0.0] * (len(tokens) - len(scores))
    metadata: dict[str, Value] = {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": array("f", scores),
        "tokenizer.ggml.token_type": array("i", kinds),
        "tokenizer.ggml.add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        "tokenizer.ggml.remove_extra_whitespaces": model.normalizer_spec.remove_extra_whitespaces,
    }
    if model.normalizer_spec.precompiled_charsmap:
        metadata["tokenizer.ggml.precompiled_charsmap"] = array("B", model.normalizer_spec.precompiled_charsmap)
    for name, ours in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = getattr(model.trainer_spec, f"{name}_id")
        if 0 <= token_id < len(tokens):
            metadata[f"tokenizer.ggml.{ours}_token_id"] = token_id
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(config.get(name), bool):
            metadata[f"tokenizer.ggml.{name}"] = config[name]
    return GgufFile([GgufHeader(folder / _FILE, metadata, {})])


def _parse(path: Path) -> Any:
    if not path.is_file():
        raise GgufError(f"{path.parent} has neither tokenizer.json nor {_FILE}")
    try:
        model = parse_model(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise GgufError(f"{path} is no sentencepiece model: {error}") from error
    if not model.pieces:
        raise GgufError(f"{path} is no sentencepiece model: it has no pieces")
    return model


def _added(folder: Path, config: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """Id, text and whether it is special, of every token added after training, by id."""
    found = {int(token_id): (token, True) for token, token_id in _read_json(folder / "added_tokens.json").items()}
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        found[int(token_id)] = (str(entry["content"]), bool(entry.get("special")))
    return sorted((token_id, token, special) for token_id, (token, special) in found.items())


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GgufError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise GgufError(f"{path} must hold a JSON object")
    return content
