"""The folder of an embedder: `model.onnx`, `tokenizer.json`, and `embedder.json`, which says what the two are and what they must give."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prompt_cache.embedding.embedder import EmbedderRefused, Vector
from prompt_cache.embedding.files import parse_object, read_file, read_object

MODEL_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
CARD_FILE = "embedder.json"
SCHEMA_VERSION = 1

MAX_MODEL_BYTES = 1_900_000_000
MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_DIMENSIONS = 8192
MAX_WINDOW_TOKENS = 32_768
_MAX_CARD_BYTES = 4 * 1024 * 1024
_MAX_KNOWN_ANSWERS = 32
_MAX_KNOWN_TEXT_CHARS = 1000

NUMBER_FORMATS = ("int8", "uint8", "float32")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A tensor whose bytes lie in a file of their own names that file under this key, as protobuf writes it.
_EXTERNAL_DATA = b"\x0a\x08location"


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """A text and the vector it has in float32, [dimensions], of unit length."""

    text: str
    vector: Vector


@dataclass(frozen=True, kw_only=True)
class EmbedderCard:
    """What `embedder.json` says.

    Attributes:
        source_name: Name of the model that was converted.
        source_sha256: Of its weights' file.
        dimensions: Length of a vector.
        window_tokens: The longest text, the tokens at its ends included.
        number_format: Of the weights: "int8", "uint8" or "float32".
        cosine_to_float32: The least that was measured between vectors of this model and of its source.
        model_sha256: Of `model.onnx`.
        tokenizer_sha256: Of `tokenizer.json`.
        known_answers: What the model must give, nearly, on every machine.
    """

    source_name: str
    source_sha256: str
    dimensions: int
    window_tokens: int
    number_format: str
    cosine_to_float32: float
    model_sha256: str
    tokenizer_sha256: str
    known_answers: tuple[KnownAnswer, ...]

    @property
    def id(self) -> str:
        """Name, number format, and a digest of whatever a vector depends on."""
        parts = (SCHEMA_VERSION, self.source_sha256, self.model_sha256, self.tokenizer_sha256, self.dimensions)
        digest = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
        return f"{self.source_name}/{self.number_format}/{digest[:16]}"

    def to_json(self) -> bytes:
        """What goes into `embedder.json`."""
        answers = [
            {"text": answer.text, "vector": base64.b64encode(answer.vector.astype("<f4").tobytes()).decode()}
            for answer in self.known_answers
        ]
        fields = {name: getattr(self, name) for name in _FIELDS if name != "known_answers"}
        return json.dumps({"schema_version": SCHEMA_VERSION, **fields, "known_answers": answers}, indent=1).encode() + b"\n"


_FIELDS = tuple(EmbedderCard.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True)
class EmbedderFolder:
    """What is in an embedder's folder; the bytes are those whose hashes the card has."""

    path: Path
    card: EmbedderCard
    model: bytes
    tokenizer: bytes


def read_folder(path: Path) -> EmbedderFolder:
    """Reads and checks an embedder's folder.

    Raises:
        EmbedderRefused: a file is missing, too large, of another schema, not the one that the card has the hash of, or refers to further files.
    """
    if not path.is_dir():
        raise EmbedderRefused(f"{path} is no folder")
    card = read_card(path / CARD_FILE)
    model = _with_hash(path / MODEL_FILE, MAX_MODEL_BYTES, card.model_sha256)
    if _EXTERNAL_DATA in model:
        raise EmbedderRefused(f"{path / MODEL_FILE} keeps tensors in other files")
    tokenizer = _with_hash(path / TOKENIZER_FILE, MAX_TOKENIZER_BYTES, card.tokenizer_sha256)
    parse_object(path / TOKENIZER_FILE, tokenizer)
    return EmbedderFolder(path=path, card=card, model=model, tokenizer=tokenizer)


def read_card(path: Path) -> EmbedderCard:
    """Reads and checks `embedder.json`.

    Raises:
        EmbedderRefused: it cannot be read, or a field is missing, unknown, of another type or out of its range; names it.
    """
    found = read_object(path, _MAX_CARD_BYTES)
    version = found.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise EmbedderRefused(f"{path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}: build the folder again")
    for name in (*_FIELDS, *found):
        if name not in found or name not in _FIELDS:
            raise EmbedderRefused(f"{path} {'lacks' if name not in found else 'has the unknown field'} {name[:100]}")
    check = _Checker(path, found)
    dimensions = check.integer("dimensions", MAX_DIMENSIONS)
    return EmbedderCard(
        source_name=check.text("source_name", _NAME),
        source_sha256=check.text("source_sha256", _SHA256),
        dimensions=dimensions,
        window_tokens=check.integer("window_tokens", MAX_WINDOW_TOKENS),
        number_format=check.text("number_format", re.compile("|".join(NUMBER_FORMATS))),
        cosine_to_float32=check.cosine("cosine_to_float32"),
        model_sha256=check.text("model_sha256", _SHA256),
        tokenizer_sha256=check.text("tokenizer_sha256", _SHA256),
        known_answers=check.known_answers("known_answers", dimensions),
    )


def is_name(text: str) -> bool:
    """Whether a text can be the name of an embedder: of its folder and in its id."""
    return _NAME.fullmatch(text) is not None


class _Checker:
    """Takes fields out of a card; EmbedderRefused names file and field."""

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self._path = path
        self._found = found

    def text(self, name: str, pattern: re.Pattern[str]) -> str:
        value = self._found[name]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._refused(name, f"a text of the form {pattern.pattern}")
        return value

    def integer(self, name: str, most: int) -> int:
        value = self._found[name]
        if type(value) is not int or not 1 <= value <= most:
            raise self._refused(name, f"an integer from 1 to {most}")
        return value

    def cosine(self, name: str) -> float:
        value = self._found[name]
        if type(value) not in (int, float) or not -1 <= value <= 1:
            raise self._refused(name, "a number from -1 to 1")
        return float(value)

    def known_answers(self, name: str, dimensions: int) -> tuple[KnownAnswer, ...]:
        value = self._found[name]
        if not isinstance(value, list) or not 2 <= len(value) <= _MAX_KNOWN_ANSWERS:
            raise self._refused(name, f"a list of 2 to {_MAX_KNOWN_ANSWERS}")
        return tuple(self._known_answer(f"{name}[{index}]", item, dimensions) for index, item in enumerate(value))

    def _known_answer(self, name: str, item: object, dimensions: int) -> KnownAnswer:
        if not isinstance(item, dict) or set(item) != {"text", "vector"} or not all(isinstance(value, str) for value in item.values()):
            raise self._refused(name, "an object of the texts text and vector")
        if not 1 <= len(item["text"]) <= _MAX_KNOWN_TEXT_CHARS:
            raise self._refused(f"{name}.text", f"1 to {_MAX_KNOWN_TEXT_CHARS} characters")
        try:
            data = base64.b64decode(item["vector"], validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != 4 * dimensions:
            raise self._refused(f"{name}.vector", f"{dimensions} float32 in base64")
        vector = np.frombuffer(data, dtype="<f4").astype(np.float32)
        if not abs(float(np.linalg.norm(vector.astype(np.float64))) - 1) <= 1e-3:
            raise self._refused(f"{name}.vector", "of unit length")
        return KnownAnswer(text=item["text"], vector=vector)

    def _refused(self, name: str, expected: str) -> EmbedderRefused:
        return EmbedderRefused(f"{self._path}: {name} must be {expected}")


def _with_hash(path: Path, max_bytes: int, sha256: str) -> bytes:
    data = read_file(path, max_bytes)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise EmbedderRefused(f"{path} is not the file that {CARD_FILE} has the sha256 of: build the folder again")
    return data
