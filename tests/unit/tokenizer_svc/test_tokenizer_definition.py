"""Edits of tokenizer.json: special tokens are found where configurations name them, and renamed wherever text could reach them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from tests.fakes.tokenizers import KINDS, SPECIAL_TOKENS
from tokenizer_svc.tokenizer_definition import DefinitionError, added_tokens, highest_id, prepare, with_aliases


def definition_of(kind: str) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(KINDS[kind]())
    return definition


def test_truncation_and_padding_are_taken_out() -> None:
    definition = definition_of("byte_level_bpe")
    expected = Tokenizer.from_str(json.dumps(definition)).encode("a b c d e f").ids
    definition["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    definition["padding"] = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    assert Tokenizer.from_str(json.dumps(prepare(definition, ()))).encode("a b c d e f").ids == expected


def test_a_token_its_configuration_calls_special_is_special_though_the_file_forgot() -> None:
    definition = definition_of("byte_level_bpe")
    for token in definition["added_tokens"]:
        token["special"] = False
    names = [token.content for token in added_tokens(prepare(definition, ["</s>", "not there"])) if token.special]
    assert names == ["</s>"]


@pytest.mark.parametrize("kind", ["metaspace_unigram", "word_piece"])
def test_a_token_of_the_vocabulary_alone_becomes_an_added_special_one(kind: str) -> None:
    definition = definition_of(kind)
    expected = next(token["id"] for token in definition["added_tokens"] if token["content"] == "</s>")
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] != "</s>"]
    prepared = prepare(definition, ["</s>"])
    assert [token["id"] for token in prepared["added_tokens"] if token["content"] == "</s>" and token["special"]] == [expected]


def test_the_given_definition_is_not_modified() -> None:
    definition = definition_of("prepending_bpe")
    before = json.dumps(definition)
    with_aliases(prepare(definition, ["<think>"]), {name: f"alias {name}" for name in SPECIAL_TOKENS})
    assert json.dumps(definition) == before


@pytest.mark.parametrize("kind", KINDS)
def test_renaming_moves_no_id(kind: str) -> None:
    definition = prepare(definition_of(kind), ())
    aliases = {name: f"alias-{index:03}" for index, name in enumerate(SPECIAL_TOKENS)}
    named, aliased = (Tokenizer.from_str(json.dumps(each)) for each in (definition, with_aliases(definition, aliases)))
    assert {aliases.get(token, token): token_id for token, token_id in named.get_vocab().items()} == aliased.get_vocab()


def test_merges_that_spell_a_special_token_are_dropped_and_others_kept() -> None:
    definition = prepare(definition_of("prepending_bpe"), ())
    kept = with_aliases(definition, {"</s>": "alias"})["model"]["merges"]
    assert ["</s", ">"] in definition["model"]["merges"]
    assert [merge for merge in definition["model"]["merges"] if merge not in kept] == [["</s", ">"]]


def test_merges_written_as_strings_are_understood() -> None:
    definition = prepare(definition_of("prepending_bpe"), ())
    definition["model"]["merges"] = [" ".join(merge) for merge in definition["model"]["merges"]]
    assert ["</s", ">"] not in with_aliases(definition, {"</s>": "alias"})["model"]["merges"]


def test_the_highest_id_is_that_of_ids_and_not_a_count() -> None:
    assert highest_id({"model": {"vocab": {"a": 7}}}) == 7
    assert highest_id({"model": {"vocab": [["a", 0.0], ["b", 0.0]]}}) == 1
    assert highest_id({"model": {"vocab": {}}}) == -1


@pytest.mark.parametrize("definition", [{}, {"model": []}, {"model": {"vocab": 3}}, {"model": {"type": "Magic", "vocab": {}}}])
def test_what_is_no_tokenizer_is_refused(definition: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        prepare(definition, ())
