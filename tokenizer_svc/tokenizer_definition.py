"""Edits a parsed tokenizer.json: which tokens are special, and what strings they answer to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tokenizer_svc.special_tokens import AddedToken

Definition = dict[str, Any]
_MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


class DefinitionError(Exception):
    """A tokenizer.json this service cannot use; says why."""


def prepare(
    definition: Definition, special_names: Collection[str], *, declared: Iterable[Mapping[str, Any]] = (), num_rows: int | None = None
) -> Definition:
    """The definition as it is served: never truncates or pads, and with every token its config calls special marked so.

    Args:
        definition: parsed tokenizer.json; not modified.
        special_names: tokens named in the model's configuration, such as its eos_token. Published files often leave them
            unmarked; one that the vocabulary does not have is passed over.
        declared: added tokens, each with its id, of the model's other files. One that is not in the definition is added.
        num_rows: token ids the model has; None = unknown. An added token beyond is left out: its name is text then.

    Raises:
        DefinitionError: not the form of a tokenizer.json, or two files give a token two ids, or a piece of the vocabulary, or a token that
            is put around texts, has an id the model does not have.
    """
    model = definition.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise DefinitionError("has no model with a vocabulary")
    if "type" in model and model["type"] not in _MODELS:
        raise DefinitionError(f"has a model of type {model['type']!r}, known are {', '.join(_MODELS)}")
    special = frozenset(special_names)
    tokens = [dict(token) for token in definition.get("added_tokens") or ()]
    known = {token["content"]: token for token in tokens}
    for name in dict.fromkeys(special_names):
        if name in known:
            known[name]["special"] = True
        elif (token_id := _id_of(name, model["vocab"])) is not None:
            known[name] = _special_token(name, token_id)
            tokens.append(known[name])
    ids = {token["id"]: name for name, token in known.items()}
    for token in declared:
        name, token_id = token["content"], token["id"]
        found = known[name]["id"] if name in known else _id_of(name, model["vocab"])
        if found is not None and found != token_id:
            raise DefinitionError(f"gives {name!r} the id {found}, another file of the folder {token_id}")
        if ids.get(token_id, name) != name:
            raise DefinitionError(f"gives the id {token_id} to {ids[token_id]!r}, another file of the folder to {name!r}")
        if name not in known:
            known[name] = {**_special_token(name, token_id), **token, "special": name in special or bool(token.get("special"))}
            ids[token_id] = name
            tokens.append(known[name])
    tokens.sort(key=lambda token: int(token["id"]))
    prepared = {**definition, "added_tokens": tokens, "truncation": None, "padding": None}
    return prepared if num_rows is None else _within_rows(prepared, num_rows)


def _within_rows(definition: Definition, num_rows: int) -> Definition:
    """The definition without added tokens whose ids the model does not have."""
    highest = highest_id(definition)
    if highest >= num_rows:
        raise DefinitionError(f"has ids up to {highest} in its vocabulary, config.json says that the model has {num_rows}")
    framed = {token_id for token in _framing_tokens(definition.get("post_processor")) for token_id in token.get("ids") or ()}
    if framed and max(framed) >= num_rows:
        raise DefinitionError(f"puts the id {max(framed)} around texts, config.json says that the model has {num_rows}")
    return {**definition, "added_tokens": [token for token in definition["added_tokens"] if token["id"] < num_rows]}


def _framing_tokens(processor: Any) -> list[dict[str, Any]]:
    """The special tokens of a template processor, or of those in a sequence."""
    if not isinstance(processor, dict):
        return []
    inner = [token for part in processor.get("processors") or () for token in _framing_tokens(part)]
    special = processor.get("special_tokens")
    return inner + (list(special.values()) if isinstance(special, dict) else [])


def added_tokens(definition: Definition) -> list[AddedToken]:
    """The definition's added tokens, in order of their ids."""
    return [
        AddedToken(token["content"], bool(token.get("special")), bool(token.get("single_word")), bool(token.get("normalized")))
        for token in definition["added_tokens"]
    ]


def highest_id(definition: Definition) -> int:
    """Highest id of the vocabulary, added tokens apart; -1 if it is empty."""
    vocab = definition["model"]["vocab"]
    return max(map(int, vocab.values()), default=-1) if isinstance(vocab, dict) else len(vocab) - 1


def unknown_id(definition: Definition) -> int | None:
    """The id that stands for what the vocabulary has no piece for; None if it has none."""
    model = definition["model"]
    if isinstance(number := model.get("unk_id"), int):
        return number
    return _id_of(model["unk_token"], model["vocab"]) if model.get("unk_token") is not None else None


def with_aliases(definition: Definition, aliases: Mapping[str, str]) -> Definition:
    """The definition with special tokens under other names, so that their own names are nothing but text.

    The vocabulary is renamed too: a Unigram or word model finds any piece that is in it, whatever the added tokens say, and so
    does a BPE model whose merges lead there.

    Args:
        definition: as `prepare` returns it; not modified.
        aliases: new name by old name.
    """
    model = dict(definition["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        renames = any(name in vocab for name in aliases)
        model["vocab"] = {aliases.get(piece, piece): token_id for piece, token_id in vocab.items()} if renames else vocab
    else:
        renames = any(piece in aliases for piece, _ in vocab)
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    if renames and model.get("merges"):
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & aliases.keys()]
    # Normalising could keep an alias from being found; it is never normalised, whatever its token was.
    tokens = [
        {**token, "content": aliases[token["content"]], "normalized": False, "single_word": False} if token["content"] in aliases else token
        for token in definition["added_tokens"]
    ]
    return {**definition, "model": model, "added_tokens": tokens}


def _id_of(name: str, vocab: dict[str, int] | list[list[Any]]) -> int | None:
    if isinstance(vocab, dict):
        return vocab.get(name)
    return next((index for index, (piece, _) in enumerate(vocab) if piece == name), None)


def _special_token(content: str, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
