"""An embedder's folder is read whole and right, or refused with the name of what is wrong."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prompt_cache.embedding.embedder import EmbedderRefused
from prompt_cache.embedding.folder import CARD_FILE, MODEL_FILE, TOKENIZER_FILE, is_name, read_card, read_folder
from tests.fakes.sentence_models import known_of, table_model, unit_table, write_embedder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = unit_table()
    return write_embedder(tmp_path / "embedder", table_model(table), known_of(table))


def edit(folder: Path, **changes: Any) -> None:
    """Sets fields of the card; a field set to `...` is removed."""
    path = folder / CARD_FILE
    fields = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))


def test_what_is_written_is_read_again(folder: Path) -> None:
    read = read_folder(folder)
    assert read.model == (folder / MODEL_FILE).read_bytes()
    assert read.tokenizer == (folder / TOKENIZER_FILE).read_bytes()
    assert read.card.to_json() == (folder / CARD_FILE).read_bytes()
    table = unit_table()
    for answer, (text, vector) in zip(read.card.known_answers, known_of(table).items(), strict=True):
        assert answer.text == text
        np.testing.assert_array_equal(answer.vector, vector)


UNIT = base64.b64encode(np.eye(8, dtype="<f4")[0].tobytes()).decode()
LONG = base64.b64encode(np.full(8, 1.0, "<f4").tobytes()).decode()
NOT_A_NUMBER = base64.b64encode(np.full(8, np.nan, "<f4").tobytes()).decode()
GOOD = {"text": "a", "vector": UNIT}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "schema_version 2"),
        ("schema_version", ..., "schema_version None"),
        ("dimensions", ..., "lacks dimensions"),
        ("surprise", 1, "unknown field surprise"),
        ("source_name", "../../etc", "source_name"),
        ("source_name", "", "source_name"),
        ("source_name", "a\n", "source_name"),
        ("source_sha256", "0" * 63, "source_sha256"),
        ("source_sha256", "0" * 64 + "\n", "source_sha256"),
        ("model_sha256", None, "model_sha256"),
        ("dimensions", 0, "dimensions"),
        ("dimensions", True, "dimensions"),
        ("dimensions", 8.0, "dimensions"),
        ("dimensions", 10**9, "dimensions"),
        ("dimensions", 7, r"known_answers\[0\].vector"),
        ("window_tokens", -1, "window_tokens"),
        ("number_format", "int4", "number_format"),
        ("cosine_to_float32", 1.5, "cosine_to_float32"),
        ("cosine_to_float32", float("nan"), "cosine_to_float32"),
        ("cosine_to_float32", "1", "cosine_to_float32"),
        ("known_answers", [], "known_answers"),
        ("known_answers", [GOOD], "known_answers"),
        ("known_answers", [GOOD] * 33, "known_answers"),
        ("known_answers", [GOOD, {"text": "a"}], r"known_answers\[1\]"),
        ("known_answers", [GOOD, {"text": "", "vector": UNIT}], r"known_answers\[1\].text"),
        ("known_answers", [GOOD, {"text": "a" * 1001, "vector": UNIT}], r"known_answers\[1\].text"),
        ("known_answers", [GOOD, {"text": "a", "vector": "?"}], r"known_answers\[1\].vector"),
        ("known_answers", [GOOD, {"text": "a", "vector": LONG}], r"known_answers\[1\].vector"),
        ("known_answers", [GOOD, {"text": "a", "vector": NOT_A_NUMBER}], r"known_answers\[1\].vector"),
    ],
)
def test_a_field_that_is_wrong_is_named(folder: Path, field: str, value: object, message: str) -> None:
    edit(folder, **{field: value})
    with pytest.raises(EmbedderRefused, match=message):
        read_folder(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE])
def test_a_file_that_is_not_the_one_of_the_card_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(EmbedderRefused, match=f"{name} is not the file that {CARD_FILE} has the sha256 of"):
        read_folder(folder)


@pytest.mark.parametrize("name", [MODEL_FILE, TOKENIZER_FILE, CARD_FILE])
@pytest.mark.parametrize("kind", ["missing", "empty", "folder", "pipe"])
def test_what_is_no_file_is_named(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink()
    if kind == "empty":
        (folder / name).touch()
    elif kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    what = {"missing": "cannot be read", "empty": "has 0 bytes"}.get(kind, "is no regular file")
    with pytest.raises(EmbedderRefused, match=f"{name} {what}"):
        read_folder(folder)


def test_a_card_that_is_too_large_is_not_read(folder: Path) -> None:
    with (folder / CARD_FILE).open("wb") as file:
        file.truncate(5_000_000)
    with pytest.raises(EmbedderRefused, match="has 5000000 bytes"):
        read_folder(folder)


@pytest.mark.parametrize("data", [b"\xff", b"[]", b"{", b"[" * 100_000], ids=["no text", "a list", "half", "deep"])
def test_a_card_that_is_no_object_is_named(folder: Path, data: bytes) -> None:
    (folder / CARD_FILE).write_bytes(data)
    with pytest.raises(EmbedderRefused, match=CARD_FILE):
        read_card(folder / CARD_FILE)


def test_a_model_that_names_other_files_is_refused(tmp_path: Path) -> None:
    table = unit_table()
    model = table_model(table)
    tensor = model.graph.initializer[1]
    onnx.external_data_helper.set_external_data(tensor, "../../../etc/passwd")
    tensor.ClearField("raw_data")
    folder = write_embedder(tmp_path / "embedder", model, known_of(table))
    with pytest.raises(EmbedderRefused, match="keeps tensors in other files"):
        read_folder(folder)


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(EmbedderRefused, match="is no folder"):
        read_folder(tmp_path / "nothing")


@pytest.mark.parametrize("field", ["source_sha256", "model_sha256", "tokenizer_sha256"])
def test_the_id_changes_with_whatever_a_vector_depends_on(folder: Path, field: str) -> None:
    before = read_card(folder / CARD_FILE).id
    edit(folder, **{field: "f" * 64})
    assert read_card(folder / CARD_FILE).id != before


def test_the_id_says_name_and_number_format(folder: Path) -> None:
    assert read_card(folder / CARD_FILE).id.startswith("by-hand/float32/")


@pytest.mark.parametrize(
    ("name", "good"), [("all-MiniLM-L6-v2", True), ("a.b_c", True), (".a", False), ("a/b", False), ("", False), ("ü", False)]
)
def test_names(name: str, good: bool) -> None:
    assert is_name(name) is good
