"""Which embedder `triserve up --semantic-cache` takes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

from gateway.cli import cache_embedder

_VARIABLE = "GATEWAY_EMBEDDER"
_NGRAMS = "ngrams"
_RUNS = ("numpy", "onnxruntime", "tokenizers")
_HOW = f"pip install 'triserve[{cache_embedder.EXTRA}]'; {cache_embedder.INSTALL}"


class EmbedderChoice(NamedTuple):
    """What the gateway is to take, as its setting says it, and in words."""

    setting: str
    words: str


def choose_embedder(
    environment: Mapping[str, str],
    *,
    find: Callable[[str], object] = find_spec,
    build: Callable[[argparse.Namespace], int] = cache_embedder.run,
) -> EmbedderChoice:
    """The one that the environment names; else the one that was built, or can be built of what is installed; else spelling alone.

    Args:
        environment: of the command.
        find: returns something for a package that is there.
        build: as `triserve cache build-embedder`; it takes seconds and shows its progress.
    """
    if given := environment.get(_VARIABLE):
        return EmbedderChoice(given, f"{given} of {_VARIABLE}")
    if all(find(package) for package in _RUNS):
        folder = cache_embedder.find_embedder(environment)
        if folder is None and cache_embedder.find_source() is not None and not build(argparse.Namespace(source=None, output=None)):
            folder = cache_embedder.find_embedder(environment)
        if folder is not None:
            return EmbedderChoice(str(folder), f"{folder.name} from {folder}")
    return EmbedderChoice(_NGRAMS, f"spelling alone, which finds little (better: {_HOW})")
