"""Reads files that others wrote: no more of them than a limit, and nothing but regular files."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

from prompt_cache.embedding.embedder import EmbedderRefused

_CHUNK_BYTES = 1024 * 1024


def read_file(path: Path, max_bytes: int) -> bytes:
    """What is in a file.

    Raises:
        EmbedderRefused: it is not there, no regular file, empty, too large or cannot be read; names it.
    """
    size = file_bytes(path, max_bytes)
    try:
        with path.open("rb") as file:
            data = file.read(size + 1)
    except OSError as error:
        raise EmbedderRefused(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise EmbedderRefused(f"{path} changes while it is read")
    return data


def file_bytes(path: Path, max_bytes: int) -> int:
    """The size of a regular file that is neither empty nor too large.

    Raises:
        EmbedderRefused: it is something else; names it.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise EmbedderRefused(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise EmbedderRefused(f"{path} is no regular file")
    if not 0 < found.st_size <= max_bytes:
        raise EmbedderRefused(f"{path} has {found.st_size} bytes, it may have 1 to {max_bytes}")
    return found.st_size


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        EmbedderRefused: as `read_file`, or it holds something else; names it.
    """
    return parse_object(path, read_file(path, max_bytes))


def read_objects(path: Path, max_bytes: int) -> list[dict[str, Any]]:
    """The list of JSON objects in a file.

    Raises:
        EmbedderRefused: as `read_file`, or it holds something else; names it.
    """
    found = _parse(path, read_file(path, max_bytes))
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise EmbedderRefused(f"{path} holds no list of JSON objects")
    return found


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in what was read of a file.

    Raises:
        EmbedderRefused: it is something else; names the file.
    """
    found = _parse(path, data)
    if not isinstance(found, dict):
        raise EmbedderRefused(f"{path} holds no JSON object")
    return found


def sha256_of(path: Path) -> str:
    """The sha256 of a file of any size, as lower-case hex.

    Raises:
        EmbedderRefused: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise EmbedderRefused(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _parse(path: Path, data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EmbedderRefused(f"{path} is no JSON") from error
