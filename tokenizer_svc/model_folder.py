"""Reads what a model folder says about its tokenizer: tokenizer.json, chat template, special tokens, the author's defaults."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TEMPLATE_FILE = "chat_template.jinja"
_SLOW_TOKENIZERS = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json", "tiktoken.model")
# No id and no parameter comes near it; NaN is not below it either.
_LARGEST = 1 << 31

Json = dict[str, Any]


class ModelFolderError(Exception):
    """A model folder this service cannot serve; names the file and what is wrong with it."""


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling the model's author recommends; None = nothing published."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True)
class ModelFolder:
    """What was read.

    Attributes:
        path: the folder.
        definition: tokenizer.json.
        chat_template: Jinja source; None = the model has none.
        tool_template: the author's other one, for chats with tools; None = there is one for all.
        special_tokens: variables such as bos_token that templates print.
        additional_special_tokens: further tokens that the configuration calls special.
        declared_tokens: entries of added_tokens_decoder and added_tokens.json, in the form of tokenizer.json's added_tokens.
        num_rows: token ids the model has, from config.json; None = it does not say.
        eos_token_ids: as generation_config.json and config.json give them, in that order, without repeats.
        defaults: from generation_config.json.
        tokenizer_class: by which transformers knows the tokenizer; empty = not said.
    """

    path: Path
    definition: Json
    chat_template: str | None
    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...]
    declared_tokens: tuple[Json, ...]
    num_rows: int | None
    eos_token_ids: tuple[int, ...]
    defaults: SamplingDefaults
    tool_template: str | None = None
    tokenizer_class: str = ""


def read_model_folder(path: Path) -> ModelFolder:
    """Reads a model folder.

    Raises:
        ModelFolderError: tokenizer.json is missing, or a file is not what its name says.
    """
    definition = _read_definition(path)
    config, generation = read_json_file(path / "config.json"), read_json_file(path / "generation_config.json")
    tokenizer_config = read_json_file(path / "tokenizer_config.json")
    declared = _declared_tokens(path, tokenizer_config)
    names = _named_tokens(path, tokenizer_config)
    special = {name: content for name in SPECIAL_TOKEN_NAMES if (content := _token_content(names.get(name))) is not None}
    eos = [*_ids(generation, "eos_token_id", path / "generation_config.json"), *_ids(config, "eos_token_id", path / "config.json")]
    return ModelFolder(
        path=path,
        definition=definition,
        chat_template=_read_chat_template(path, tokenizer_config),
        special_tokens=special,
        additional_special_tokens=_additional_special_tokens(names, path),
        declared_tokens=declared,
        num_rows=_num_rows(config, path / "config.json"),
        eos_token_ids=tuple(dict.fromkeys(eos)),
        defaults=_read_defaults(generation, path / "generation_config.json"),
        tool_template=_read_template_of_name(path, tokenizer_config, "tool_use"),
        tokenizer_class=name if isinstance(name := tokenizer_config.get("tokenizer_class"), str) else "",
    )


def _named_tokens(path: Path, tokenizer_config: Json) -> Json:
    """Which tokens are called what. special_tokens_map.json counts, and goes first, where tokenizer_config.json is of the time before it
    listed added tokens itself: as transformers reads them."""
    names = {key: value for key, value in tokenizer_config.items() if value is not None}
    if "added_tokens_decoder" in names:
        return names
    of_old = read_json_file(path / "special_tokens_map.json")
    return {**names, **{key: value for key, value in of_old.items() if value is not None}}


def _read_definition(path: Path) -> Json:
    if not path.is_dir():
        raise ModelFolderError(f"{path} is not a folder")
    if not (path / "tokenizer.json").is_file():
        slow = [name for name in _SLOW_TOKENIZERS if (path / name).exists()]
        hint = f"; {slow[0]} is a slow tokenizer, which is not supported: save the model with its fast one" if slow else ""
        raise ModelFolderError(f"{path} has no tokenizer.json{hint}")
    return read_json_file(path / "tokenizer.json")


def read_json_file(path: Path) -> Json:
    """The object in a JSON file; empty if there is no such file. Raises ModelFolderError if it holds anything else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise ModelFolderError(f"{path} cannot be read: it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ModelFolderError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def _read_chat_template(path: Path, tokenizer_config: Json) -> str | None:
    if (path / _TEMPLATE_FILE).exists():
        return _read_text(path / _TEMPLATE_FILE)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        return _read_template_of_name(path, tokenizer_config, "default")
    return _checked_template(template, path)


def _read_template_of_name(path: Path, tokenizer_config: Json, name: str) -> str | None:
    """One of several templates: of the files beside the default's, where that is a file, or else of the configuration's list."""
    if (path / _TEMPLATE_FILE).exists():
        file = path / "additional_chat_templates" / f"{name}.jinja"
        return _read_text(file) if file.exists() else None
    templates = tokenizer_config.get("chat_template")
    if not isinstance(templates, list):
        return None
    named = (entry.get("template") for entry in templates if isinstance(entry, dict) and entry.get("name") == name)
    return _checked_template(next(named, None), path)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{file} cannot be read: {error}") from error


def _checked_template(template: object, path: Path) -> str | None:
    if template is not None and not isinstance(template, str):
        raise ModelFolderError(f"{path / 'tokenizer_config.json'}: chat_template is a {type(template).__name__}, not a string")
    return template


def _token_content(value: object) -> str | None:
    """The text of a special token, which is published as a string or as an object with a content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _additional_special_tokens(names: Json, path: Path) -> tuple[str, ...]:
    """Further tokens that the configuration calls special, in each of the places it may do so."""
    tokens: list[Any] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        group = names.get(name) or []
        if not isinstance(group, list | dict):
            raise ModelFolderError(f"{path / 'tokenizer_config.json'}: {name} is a {type(group).__name__}, not a list of tokens")
        tokens += group.values() if isinstance(group, dict) else group
    by_id = names.get("added_tokens_decoder") or {}
    tokens += [token for token in by_id.values() if isinstance(token, dict) and token.get("special")]
    return tuple(dict.fromkeys(content for token in tokens if (content := _token_content(token)) is not None))


def _declared_tokens(path: Path, tokenizer_config: Json) -> tuple[Json, ...]:
    file = path / "tokenizer_config.json"
    by_id = tokenizer_config.get("added_tokens_decoder") or {}
    if not isinstance(by_id, dict):
        raise ModelFolderError(f"{file}: added_tokens_decoder is a {type(by_id).__name__}, not an object")
    declared: dict[str, Json] = {}
    for key, token in by_id.items():
        content = _token_content(token)
        if content is None or not key.isdecimal() or not int(key) < _LARGEST:
            raise ModelFolderError(
                f"{file}: added_tokens_decoder has {reprlib.repr(key)}: {reprlib.repr(token)}, which is no token with its id"
            )
        flags = {name: value for name, value in token.items() if isinstance(value, bool)} if isinstance(token, dict) else {}
        declared[content] = {"special": False, **flags, "id": int(key), "content": content}
    file = path / "added_tokens.json"
    # Of the same time as special_tokens_map.json.
    for content, token_id in (read_json_file(file) if "added_tokens_decoder" not in tokenizer_config else {}).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < _LARGEST or not content:
            raise ModelFolderError(f"{file}: {reprlib.repr(content)} has {reprlib.repr(token_id)}, which is no token id")
        declared.setdefault(content, {"special": False, "id": token_id, "content": content})
    return tuple(declared.values())


def _num_rows(config: Json, path: Path) -> int | None:
    """How many token ids the model has; families call it by two names."""
    name = next((name for name in ("padded_vocab_size", "vocab_size") if config.get(name) is not None), None)
    if name is None:
        return None
    value = config[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelFolderError(f"{path}: {name} is {reprlib.repr(value)}, it must be a whole number above 0")
    return value


def _ids(config: Json, key: str, path: Path) -> list[int]:
    value = config.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < _LARGEST:
            raise ModelFolderError(f"{path}: {key} has {reprlib.repr(token_id)}, which is no token id")
    return ids


def _read_defaults(generation: Json, path: Path) -> SamplingDefaults:
    penalty = _number(generation, "repetition_penalty", path, "above 0 and at most 10", lambda value: 0 < value <= 10)
    # An author who turned sampling off wants the likeliest token, and left the other values there by habit; a penalty changes which it is.
    if generation.get("do_sample") is False:
        return SamplingDefaults(temperature=0.0, repetition_penalty=penalty)
    temperature = _number(generation, "temperature", path, "from 0 to 100", lambda value: 0 <= value <= 100)
    top_k = _number(generation, "top_k", path, "a whole number, 0 or -1 = off", lambda value: value >= -1 and value == int(value))
    top_p = _number(generation, "top_p", path, "above 0 and at most 1", lambda value: 0 < value <= 1)
    min_p = _number(generation, "min_p", path, "from 0 to 1", lambda value: 0 <= value <= 1)
    typical_p = _number(generation, "typical_p", path, "above 0 and at most 1", lambda value: 0 < value <= 1)
    return SamplingDefaults(
        temperature=temperature,
        top_k=int(top_k) if top_k is not None and top_k > 0 else None,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=penalty,
    )


def _number(config: Json, key: str, path: Path, limit: str, fits: Callable[[float], bool]) -> float | None:
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < _LARGEST or not fits(value):
        raise ModelFolderError(f"{path}: {key} is {reprlib.repr(value)}, it must be {limit}")
    return value
