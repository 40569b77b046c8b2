"""What a model folder says of its tokenizer to those who tokenize elsewhere: ids with a meaning, the author's defaults, the files themselves."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

# What tokenizers and chat templates are made of, whoever reads them; weights are none of it.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.json",
)
# As generation_config.json and vLLM's SamplingParams both call them.
_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class ModelFacts(NamedTuple):
    """Of one model folder.

    Attributes:
        ends: ids that end an answer, rising.
        bos_token_id: begins a text; 0 = none, or not said.
        pad_token_id: likewise.
        model_type: as config.json has it; empty = not said.
        architectures: likewise.
        sampling_defaults: the author's, as JSON; empty = there are none.
    """

    ends: tuple[int, ...]
    bos_token_id: int
    pad_token_id: int
    model_type: str
    architectures: tuple[str, ...]
    sampling_defaults: str


def read_model_facts(folder: Path) -> ModelFacts:
    """Reads a model folder. What is of another type than it should be counts as not said: the tokenizer stage refuses such folders.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is no JSON.
    """
    config, generation = _object(folder / "config.json"), _object(folder / "generation_config.json")
    named = _object(folder / "special_tokens_map.json") | _object(folder / "tokenizer_config.json")
    ids = _ids_of_names(_object(folder / "tokenizer.json"))
    ends = {*_ids(generation.get("eos_token_id")), *_ids(config.get("eos_token_id")), *_ids(ids.get(_content(named.get("eos_token"))))}
    special = {
        name: next(iter(_ids(config.get(f"{name}_id")) or _ids(ids.get(_content(named.get(name))))), 0)
        for name in ("bos_token", "pad_token")
    }
    architectures = config.get("architectures")
    return ModelFacts(
        ends=tuple(sorted(ends)),
        bos_token_id=special["bos_token"],
        pad_token_id=special["pad_token"],
        model_type=str(config.get("model_type") or ""),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        sampling_defaults=_sampling_defaults(generation),
    )


def tokenizer_archive(folder: Path) -> tuple[bytes, str]:
    """The folder's tokenizer files as a ZIP archive, the same for the same files, and its sha256 in lower-case hex.

    Raises:
        OSError: a file cannot be read.
    """
    names = [*_TOKENIZER_FILES, *sorted(path.name for path in folder.glob("*.jinja"))]
    buffer = io.BytesIO()
    # Not compressed: it would take the processor longer than the network.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            if (folder / name).is_file():
                archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
    content = buffer.getvalue()
    return content, hashlib.sha256(content).hexdigest()


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    content = json.loads(path.read_bytes())
    return content if isinstance(content, dict) else {}


def _ids_of_names(definition: dict[str, Any]) -> dict[str | None, Any]:
    """Ids of a tokenizer.json's tokens, by their text."""
    model, added = definition.get("model"), definition.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str | None, Any] = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    for token in added if isinstance(added, list) else ():
        if (content := _content(token)) is not None:
            found[content] = token.get("id") if isinstance(token, dict) else None
    return found


def _ids(value: object) -> list[int]:
    """Token ids, published as one or as a list."""
    listed = value if isinstance(value, list) else [value]
    return [item for item in listed if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31]


def _content(token: object) -> str | None:
    """The text of a special token, published as a string or as an object with a content."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _sampling_defaults(generation: dict[str, Any]) -> str:
    # An author who turned sampling off wants the likeliest token, and left the other values there by habit.
    names = ("repetition_penalty",) if generation.get("do_sample") is False else _DEFAULTS
    found = {name: generation[name] for name in names if isinstance(generation.get(name), int | float)}
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    return json.dumps(found) if found else ""
