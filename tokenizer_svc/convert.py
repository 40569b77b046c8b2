"""Writes the tokenize stage's part of a model folder: `python -m tokenizer_svc.convert MODEL.gguf FOLDER`; tokenizer and chat template."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizer_svc.gguf.definition import build_definition
from tokenizer_svc.gguf.vocabulary import read_vocabulary
from triserve.model_files.gguf_file import GgufFile, open_gguf
from triserve.model_files.gguf_header import GgufError

_SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repetition_penalty": "penalty_repeat"}


def main() -> None:
    """Converts; ends with status 1 and one line if it cannot."""
    parser = argparse.ArgumentParser(prog="tokenizer_svc.convert", description=__doc__)
    parser.add_argument("source", type=Path, help="a GGUF file, any part of a split one")
    parser.add_argument("folder", type=Path, help="where to; must exist")
    for name in ("temperature", "top-p"):
        parser.add_argument(f"--{name}", type=float, help="what the author recommends, where the file does not say it")
    arguments = parser.parse_args()
    recommended = {name: value for name in ("temperature", "top_p") if (value := getattr(arguments, name)) is not None}
    try:
        convert_gguf(arguments.source, arguments.folder, recommended=recommended)
    except (GgufError, OSError) as error:
        raise SystemExit(f"tokenizer_svc.convert: {error}") from None


def convert_gguf(source: Path, folder: Path, *, recommended: Mapping[str, float] = MappingProxyType({})) -> None:
    """Writes tokenizer.json, tokenizer_config.json, generation_config.json and, where the file has one, chat_template.jinja.

    Args:
        source: The file, or a part of a split one.
        folder: Where to; must exist.
        recommended: Sampling for generation_config.json; goes before what the file says.

    Raises:
        GgufError: The file cannot be used.
        OSError: The folder cannot be written.
    """
    file = open_gguf(source)
    definition, vocabulary = build_definition(file), read_vocabulary(file)
    _write_json(folder / "tokenizer.json", definition)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(file, dict(vocabulary.special)))
    generation = {**_sampling(file), **recommended}
    if vocabulary.ends:
        generation["eos_token_id"] = list(vocabulary.ends)
    _write_json(folder / "generation_config.json", generation)
    if "tokenizer.chat_template" in file:
        (folder / "chat_template.jinja").write_text(file.text("tokenizer.chat_template"), encoding="utf-8")


def _sampling(file: GgufFile) -> dict[str, Any]:
    """What the file recommends, under the names of generation_config.json."""
    return {theirs: value for theirs, ours in _SAMPLING.items() if (value := file.get(f"general.sampling.{ours}")) is not None}


def _tokenizer_config(file: GgufFile, special: dict[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    length = file.get(f"{file.architecture}.context_length")
    return config if length is None else {**config, "model_max_length": length}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
