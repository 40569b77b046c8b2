"""Model folders: what is read from which file, and what is refused by file and value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.tokenizers import write_model_folder
from tokenizer_svc.model_folder import ModelFolderError, SamplingDefaults, read_model_folder


def folder_with(path: Path, **files: Any) -> Path:
    return write_model_folder(path, template=None, **files)


def test_a_folder_needs_its_tokenizer_and_nothing_else(tmp_path: Path) -> None:
    write_model_folder(tmp_path, template=None)
    (tmp_path / "tokenizer_config.json").unlink()
    folder = read_model_folder(tmp_path)
    assert (folder.chat_template, dict(folder.special_tokens), folder.eos_token_ids, folder.defaults) == (None, {}, (), SamplingDefaults())


def test_a_missing_folder_or_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="is not a folder"):
        read_model_folder(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match=r"has no tokenizer\.json$"):
        read_model_folder(tmp_path)


def test_a_slow_tokenizer_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\0")
    with pytest.raises(ModelFolderError, match=r"tokenizer\.model is a slow tokenizer, which is not supported"):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "\ud800"])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: str) -> None:
    folder_with(tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        read_model_folder(tmp_path)


def test_the_template_file_comes_before_the_configuration(tmp_path: Path) -> None:
    folder_with(tmp_path, tokenizer_config={"chat_template": "from config"})
    assert read_model_folder(tmp_path).chat_template == "from config"
    (tmp_path / "chat_template.jinja").write_text("from file", encoding="utf-8")
    assert read_model_folder(tmp_path).chat_template == "from file"


def test_a_template_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder_with(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelFolderError, match=r"chat_template\.jinja cannot be read"):
        read_model_folder(tmp_path)


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert read_model_folder(folder_with(tmp_path / "a", tokenizer_config={"chat_template": templates})).chat_template == "plain"
    assert read_model_folder(folder_with(tmp_path / "b", tokenizer_config={"chat_template": templates[:1]})).chat_template is None


def test_a_template_for_tools_is_of_the_same_place_as_the_default(tmp_path: Path) -> None:
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder = folder_with(tmp_path, tokenizer_config={"chat_template": templates})
    assert read_model_folder(folder).tool_template == "tools"
    (tmp_path / "chat_template.jinja").write_text("from file", encoding="utf-8")
    assert read_model_folder(folder).tool_template is None
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools from file", encoding="utf-8")
    read = read_model_folder(folder)
    assert (read.chat_template, read.tool_template) == ("from file", "tools from file")
    wrong = [{"name": "tool_use", "template": 3}]
    with pytest.raises(ModelFolderError, match="chat_template is a int"):
        read_model_folder(folder_with(tmp_path / "wrong", tokenizer_config={"chat_template": wrong}))


def test_a_template_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="chat_template is a int"):
        read_model_folder(folder_with(tmp_path, tokenizer_config={"chat_template": 3}))


@pytest.mark.parametrize(("lists_added_tokens", "eos"), [(False, "<other>"), (True, "<e>")])
def test_special_tokens_are_strings_or_objects_and_the_map_wins_where_no_added_tokens_are_listed(
    tmp_path: Path, lists_added_tokens: bool, eos: str
) -> None:
    folder_with(
        tmp_path,
        tokenizer_config={
            **({"added_tokens_decoder": {}} if lists_added_tokens else {}),
            "bos_token": {"content": "<b>"},
            "eos_token": "<e>",
            "unk_token": None,
            "additional_special_tokens": ["<x>", {"content": "<y>"}],
        },
        special_tokens_map={"eos_token": "<other>", "pad_token": {"content": "<p>"}, "unk_token": "<u>"},
    )
    folder = read_model_folder(tmp_path)
    of_map = {} if lists_added_tokens else {"pad_token": "<p>", "unk_token": "<u>"}
    assert dict(folder.special_tokens) == {"bos_token": "<b>", "eos_token": eos, **of_map}
    assert folder.additional_special_tokens == ("<x>", "<y>")


def test_tokens_are_special_wherever_the_configuration_says_so(tmp_path: Path) -> None:
    decoder = {"7": {"content": "<d>", "special": True}, "8": {"content": "<plain>", "special": False}}
    folder_with(tmp_path / "a", tokenizer_config={"extra_special_tokens": {"image_token": "<i>"}, "added_tokens_decoder": decoder})
    folder_with(tmp_path / "b", tokenizer_config={"extra_special_tokens": ["<i>", "<i>"]})
    assert read_model_folder(tmp_path / "a").additional_special_tokens == ("<i>", "<d>")
    assert read_model_folder(tmp_path / "b").additional_special_tokens == ("<i>",)


def test_end_of_text_ids_are_collected_once_each_in_a_stable_order(tmp_path: Path) -> None:
    folder_with(tmp_path, generation_config={"eos_token_id": [5, 2]}, config={"eos_token_id": 2})
    assert read_model_folder(tmp_path).eos_token_ids == (5, 2)
    (tmp_path / "generation_config.json").unlink()
    assert read_model_folder(tmp_path).eos_token_ids == (2,)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}), encoding="utf-8")
    assert read_model_folder(tmp_path).eos_token_ids == ()


@pytest.mark.parametrize("wrong", [-1, "x", [2, None], True, 1.5])
def test_what_is_no_token_id_is_refused(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(ModelFolderError, match=r"config\.json: eos_token_id"):
        read_model_folder(folder_with(tmp_path, config={"eos_token_id": wrong}))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, SamplingDefaults()),
        ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}, SamplingDefaults(0.6, 20, 0.95)),
        ({"temperature": 0.7}, SamplingDefaults(temperature=0.7)),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, SamplingDefaults(temperature=0.0)),
        ({"do_sample": True, "min_p": 0.1, "repetition_penalty": 1.1}, SamplingDefaults(min_p=0.1, repetition_penalty=1.1)),
        ({"do_sample": True, "typical_p": 0.9}, SamplingDefaults(typical_p=0.9)),
        ({"do_sample": False, "typical_p": 0.9}, SamplingDefaults(0.0)),
        ({"do_sample": False, "min_p": 0.1, "repetition_penalty": 1.1}, SamplingDefaults(0.0, repetition_penalty=1.1)),
        ({"top_k": -1, "top_p": 0.5}, SamplingDefaults(top_p=0.5)),
        ({"do_sample": None, "top_p": 1.0}, SamplingDefaults(top_p=1.0)),
        ({"temperature": 0, "top_k": 0}, SamplingDefaults(temperature=0)),
        ({"temperature": None, "top_k": None, "top_p": None}, SamplingDefaults()),
    ],
)
def test_the_author_s_defaults_are_those_published(tmp_path: Path, generation: dict[str, Any], expected: SamplingDefaults) -> None:
    assert read_model_folder(folder_with(tmp_path, generation_config=generation)).defaults == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "hot"),
        ("top_k", -2),
        ("top_k", float("inf")),
        ("top_k", 10**400),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("typical_p", 0),
        ("typical_p", 1.1),
        ("repetition_penalty", 0),
        ("repetition_penalty", 11),
        ("temperature", float("nan")),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_p", True),
    ],
)
def test_defaults_out_of_range_are_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelFolderError, match=rf"generation_config\.json: {key} is"):
        read_model_folder(folder_with(tmp_path, generation_config={key: value}))
