"""What a model folder says of its tokenizer, its chats and its author's defaults, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizer_svc.chat_template import ChatTemplate
from tokenizer_svc.model_folder import SPECIAL_TOKEN_NAMES, Json, ModelFolder, read_json_file
from tokenizer_svc.tokenizer import Tokenizer, eos_token_ids
from triserve.rpc.folder_audit import Fact, FolderAudit

_GENERATION, _TOKENIZER, _MAP, _ADDED = "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_NAMES = frozenset({*SPECIAL_TOKEN_NAMES, "additional_special_tokens", "extra_special_tokens"})
_USED: Mapping[str, frozenset[str]] = {
    _GENERATION: frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "eos_token_id"}),
    _TOKENIZER: _NAMES | {"added_tokens_decoder", "chat_template"},
    _MAP: _NAMES,
    "tokenizer.json": frozenset({"added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"}),
}
# What a value of generation_config.json would have to be to ask for nothing.
_ASKS_FOR_NOTHING: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0, 0.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "length_penalty": (1, 1.0),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0, 0.0),
    "min_length": (0,),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"), ((), [])),
    **dict.fromkeys(
        ("sequence_bias", "max_new_tokens", "min_new_tokens", "guidance_scale", "stop_strings", "exponential_decay_length_penalty"), ()
    ),
}


def audit_tokenizer(folder: ModelFolder, tokenizer: Tokenizer, template: ChatTemplate | None) -> FolderAudit:
    """The tokenize stage's part of the table.

    Args:
        folder: what was read.
        tokenizer: what was made of it.
        template: likewise; None = the folder has none.

    Raises:
        ModelFolderError: a file cannot be read.
    """
    files = {name: read_json_file(folder.path / name) for name in _USED}
    used = dict(_USED)
    if "added_tokens_decoder" in files[_TOKENIZER]:
        used[_MAP] = frozenset()
    else:
        files[_ADDED] = read_json_file(folder.path / _ADDED)
        used[_ADDED] = frozenset(files[_ADDED])
    problems = [*_unknown_tokens(folder, tokenizer), *_generation_problems(files[_GENERATION])]
    return FolderAudit(
        facts=tuple(_facts(folder, tokenizer, template, used)),
        used={name: tuple(field for field in content if field in used[name]) for name, content in files.items()},
        without_effect={name: tuple(field for field in content if field not in used[name]) for name, content in files.items()},
        problems=tuple(problems),
    )


def _facts(folder: ModelFolder, tokenizer: Tokenizer, template: ChatTemplate | None, used: Mapping[str, frozenset[str]]) -> list[Fact]:
    facts = [Fact("tokenizer ids", str(tokenizer.vocab_size), "tokenizer.json" + _beside(folder))]
    for name, token in folder.special_tokens.items():
        where = _MAP if name in used[_MAP] and read_json_file(folder.path / _MAP).get(name) is not None else _TOKENIZER
        facts.append(Fact(name, f"{token!r}, id {tokenizer.token_id(token)}", f"{where}: {name}"))
    ends = ", ".join(f"{token_id}" for token_id in eos_token_ids(tokenizer, folder)) or "none"
    facts.append(Fact("ends of answers", ends, f"{_GENERATION}, config.json: eos_token_id; {_TOKENIZER}: eos_token"))
    source = "chat_template.jinja" if (folder.path / "chat_template.jinja").exists() else f"{_TOKENIZER}: chat_template"
    size = f"{len(folder.chat_template or '')} characters"
    facts.append(Fact("chat template", "none" if template is None else size, "" if template is None else source))
    for name, value in vars(folder.defaults).items():
        greedy = name == "temperature" and read_json_file(folder.path / _GENERATION).get("do_sample") is False
        field = "do_sample" if greedy else name
        facts.append(
            Fact(f"default {name}", "the contract's" if value is None else f"{value:g}", "" if value is None else f"{_GENERATION}: {field}")
        )
    return facts


def _beside(folder: ModelFolder) -> str:
    declared = [token["content"] for token in folder.declared_tokens]
    known = {token["content"] for token in folder.definition.get("added_tokens") or ()}
    return f", {_TOKENIZER} and {_ADDED}" if any(name not in known for name in declared) else ""


def _unknown_tokens(folder: ModelFolder, tokenizer: Tokenizer) -> list[str]:
    named = [*folder.special_tokens.items(), *(("additional_special_tokens", token) for token in folder.additional_special_tokens)]
    lost = [f"{name} {token!r} is no token of the vocabulary: it is text" for name, token in named if tokenizer.token_id(token) is None]
    listed = [*(folder.definition.get("added_tokens") or ()), *folder.declared_tokens]
    beyond = {token["content"]: token["id"] for token in listed if folder.num_rows is not None and token["id"] >= folder.num_rows}
    lost += [f"{name!r} has the id {token_id}, the model has {folder.num_rows}: it is text" for name, token_id in beyond.items()]
    return lost + [
        f"eos_token_id {token_id} is no id of the model"
        for token_id in folder.eos_token_ids
        if folder.num_rows is not None and token_id >= folder.num_rows
    ]


def _generation_problems(generation: Json) -> list[str]:
    asked = {name: generation[name] for name in _ASKS_FOR_NOTHING if generation.get(name) is not None}
    return [f"{_GENERATION}: {name} {value!r} is not applied" for name, value in asked.items() if value not in _ASKS_FOR_NOTHING[name]]
