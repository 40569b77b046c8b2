"""What becomes of a folder's files is told, each with where it came from; what cannot be done is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.inspect import audit_folder
from triserve.rpc.folder_audit import FolderAudit


def audit(path: Path, **files: Any) -> FolderAudit:
    return audit_folder(write_model_folder(path, **files))


def fact(found: FolderAudit, what: str) -> tuple[str, str]:
    (one,) = [fact for fact in found.facts if fact.what == what]
    return one.value, one.source


def test_every_fact_names_the_file_and_field_it_came_from(tmp_path: Path) -> None:
    found = audit(tmp_path, generation_config={"do_sample": True, "min_p": 0.25, "eos_token_id": 7}, config={"vocab_size": 4000})
    assert fact(found, "default min_p") == ("0.25", "generation_config.json: min_p")
    assert fact(found, "default top_p") == ("the contract's", "")
    assert fact(found, "ends of answers")[0].split(", ")[0] == "7"
    assert fact(found, "eos_token")[1] == "tokenizer_config.json: eos_token"
    assert fact(found, "chat template")[1] == "chat_template.jinja"
    assert found.used["generation_config.json"] == ("do_sample", "min_p", "eos_token_id")


def test_a_token_of_the_old_map_is_said_to_come_from_it(tmp_path: Path) -> None:
    found = audit(tmp_path / "a", special_tokens_map={"eos_token": "<|im_end|>"})
    assert fact(found, "eos_token")[1] == "special_tokens_map.json: eos_token"
    found = audit(tmp_path / "b", special_tokens_map={"eos_token": "<|im_end|>"}, tokenizer_config={"added_tokens_decoder": {}})
    assert fact(found, "eos_token")[1] == "tokenizer_config.json: eos_token"
    assert found.without_effect["special_tokens_map.json"] == ("eos_token",)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer_config": {"pad_token": "<nowhere>"}}, "pad_token '<nowhere>' is no token of the vocabulary: it is text"),
        ({"generation_config": {"num_beams": 4}}, "generation_config.json: num_beams 4 is not applied"),
        ({"generation_config": {"bad_words_ids": [[3, 4]]}}, "generation_config.json: bad_words_ids [[3, 4]] is not applied"),
        ({"generation_config": {"suppress_tokens": [3]}}, "generation_config.json: suppress_tokens [3] is not applied"),
        ({"config": {"vocab_size": 4000, "eos_token_id": 5000}}, "eos_token_id 5000 is no id of the model"),
    ],
)
def test_what_is_not_done_is_said(tmp_path: Path, files: dict[str, Any], problem: str) -> None:
    found = audit(tmp_path, **files)
    assert found.problems == (problem,)
    assert f"note: {problem}" in found.lines()


def test_a_typical_p_is_a_default_and_no_problem(tmp_path: Path) -> None:
    found = audit(tmp_path, generation_config={"do_sample": True, "typical_p": 0.5})
    assert fact(found, "default typical_p") == ("0.5", "generation_config.json: typical_p")
    assert found.used["generation_config.json"] == ("do_sample", "typical_p")
    assert found.problems == ()


def test_what_asks_for_nothing_is_no_problem(tmp_path: Path) -> None:
    assert audit(tmp_path, generation_config={"num_beams": 1, "bad_words_ids": [], "max_new_tokens": None}).problems == ()


def test_a_token_beyond_the_model_is_named(tmp_path: Path) -> None:
    rows = int(fact(audit(tmp_path / "a"), "tokenizer ids")[0]) - 1
    found = audit(tmp_path / "b", config={"vocab_size": rows})
    assert fact(found, "tokenizer ids")[0] == str(rows)
    assert found.problems == (f"'<model>' has the id {rows}, the model has {rows}: it is text",)


def test_an_audit_comes_back_from_its_json(tmp_path: Path) -> None:
    found = audit(tmp_path)
    assert FolderAudit.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match="no audit of a folder"):
        FolderAudit.from_json("[]")
