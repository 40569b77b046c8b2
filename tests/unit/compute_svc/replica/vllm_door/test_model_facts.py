"""What a model folder says of its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compute_svc.replica.vllm_door.model_facts import ModelFacts, read_model_facts, tokenizer_archive

TINY = Path(__file__).parents[4] / "tiny_model"


def folder_of(path: Path, **files: Any) -> Path:
    """A folder with JSON files, by name without ".json"."""
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_a_folder_that_says_nothing_has_no_facts(tmp_path: Path) -> None:
    assert read_model_facts(tmp_path) == ModelFacts((), 0, 0, "", (), "")


def test_ends_are_those_of_every_file_that_names_one(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        config={"eos_token_id": 3, "bos_token_id": 1, "model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        generation_config={"eos_token_id": [5, 3]},
        tokenizer_config={"eos_token": {"content": "<|end|>"}, "pad_token": "pad"},
        tokenizer={"model": {"vocab": {"pad": 8, "<|end|>": 2}}, "added_tokens": [{"content": "<|end|>", "id": 9}]},
    )
    facts = read_model_facts(folder)
    assert (facts.ends, facts.bos_token_id, facts.pad_token_id) == ((3, 5, 9), 1, 8)
    assert (facts.model_type, facts.architectures) == ("llama", ("LlamaForCausalLM",))


@pytest.mark.parametrize(
    ("generation", "defaults"),
    [
        ({"temperature": 0.6, "top_k": 20, "max_length": 5}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, {"temperature": 0.0, "repetition_penalty": 1.1}),
        ({"do_sample": True, "top_p": 0.9, "min_p": None}, {"top_p": 0.9}),
    ],
)
def test_the_author_s_defaults_are_those_that_answers_are_drawn_with(tmp_path: Path, generation: Any, defaults: Any) -> None:
    assert json.loads(read_model_facts(folder_of(tmp_path, generation_config=generation)).sampling_defaults) == defaults


@pytest.mark.parametrize("odd", [None, "2", True, -1, [None, "2"], {"id": 2}, 2**40])
def test_what_is_no_token_id_is_none(tmp_path: Path, odd: Any) -> None:
    folder = folder_of(tmp_path, config={"eos_token_id": odd, "bos_token_id": odd, "architectures": odd}, tokenizer={"added_tokens": [odd]})
    assert read_model_facts(folder)[:3] == ((), 0, 0)


def test_the_archive_of_the_same_files_is_the_same_bytes(tmp_path: Path) -> None:
    content, sha256 = tokenizer_archive(TINY)
    for file in TINY.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert tokenizer_archive(tmp_path) == (content, sha256)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert tokenizer_archive(tmp_path)[1] != sha256
