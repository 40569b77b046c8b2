"""A GGUF model: one file, or the parts of a split one read as one; and typed access to its metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from triserve.model_files.gguf_header import GgufError, GgufHeader, GgufTensor, Value, read_header

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MAX_PARTS = 4096
_T = TypeVar("_T")


class GgufFile:
    """What all parts of a model say, checked.

    Attributes:
        paths: The files, in order.
        tensors: Of all parts, by name.
    """

    def __init__(self, headers: Sequence[GgufHeader]) -> None:
        """
        Raises:
            GgufError: Two parts hold a tensor of the same name.
        """
        self.paths = tuple(header.path for header in headers)
        self.tensors: dict[str, GgufTensor] = {}
        self._metadata = headers[0].metadata
        for header in headers:
            twice = sorted(self.tensors.keys() & header.tensors.keys())
            if twice:
                raise GgufError(f"{header.path} holds the tensor {twice[0]!r}, which another part holds too")
            self.tensors |= header.tensors

    @property
    def place(self) -> str:
        """The first file, for messages."""
        return str(self.paths[0])

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's family. Raises GgufError if the file does not say."""
        return self.text("general.architecture")

    def __contains__(self, key: str) -> bool:
        return key in self._metadata

    def get(self, key: str) -> Value | None:
        """A metadata value of any type; None if there is none."""
        return self._metadata.get(key)

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises GgufError if it is something else, or absent without a default."""
        value: str = self._typed(key, (str,), "a string", default)
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A truth value. Raises as `text` does."""
        value: bool = self._typed(key, (bool,), "a truth value", default)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Raises as `text` does."""
        value = float(self._typed(key, (int, float), "a number", default))
        if not 0 < value < float("inf"):
            raise GgufError(f"{self.place}: {key} is {value}, it must be a finite number above 0")
        return value

    def count(self, key: str, default: int | None = None, *, at_least: int = 1) -> int:
        """A whole number. Raises as `text` does, and if it is less than `at_least`."""
        value: int = self._typed(key, (int,), "a whole number", default)
        if value < at_least:
            raise GgufError(f"{self.place}: {key} is {value}, it must be at least {at_least}")
        return value

    def texts(self, key: str, default: Sequence[str] | None = None) -> Sequence[str]:
        """An array of strings. Raises as `text` does."""
        value: Sequence[str] = self._items(key, (str,), "an array of strings", default)
        return value

    def counts(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]:
        """An array of whole numbers. Raises as `text` does."""
        value: Sequence[int] = self._items(key, (int,), "an array of whole numbers", default)
        return value

    def numbers(self, key: str, default: Sequence[float] | None = None) -> Sequence[float]:
        """An array of numbers. Raises as `text` does."""
        value: Sequence[float] = self._items(key, (int, float), "an array of numbers", default)
        return value

    def _typed(self, key: str, types: tuple[type, ...], words: str, default: _T | None) -> Any:
        value = self._metadata.get(key)
        if value is None:
            if default is None:
                raise GgufError(f"{self.place} lacks {key}")
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise GgufError(f"{self.place}: {key} is no {words.removeprefix('a ')}")
        return value

    def _items(self, key: str, types: tuple[type, ...], words: str, default: Sequence[_T] | None) -> Any:
        value = self._metadata.get(key)
        if value is None:
            if default is None:
                raise GgufError(f"{self.place} lacks {key}")
            return default
        # All items of an array are of one type.
        if isinstance(value, str | bool | int | float) or (len(value) and (not isinstance(value[0], types) or isinstance(value[0], bool))):
            raise GgufError(f"{self.place}: {key} is not {words}")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Reads the headers of a model: of this file, and if it is a part of a split one, of all parts beside it.

    Raises:
        GgufError: A file cannot be read or is out of bounds, or parts are missing or do not belong together.
    """
    paths = part_paths(path)
    first = read_header(paths[0])
    count = first.metadata.get("split.count", 1)
    if count in (0, 1) and len(paths) == 1:
        return GgufFile([first])
    if count != len(paths):
        named = f"its name says {len(paths)}" if len(paths) > 1 else "its name is not NAME-00001-of-0000N.gguf"
        raise GgufError(f"{paths[0]} is split into {count} files, but {named}")
    headers = [first, *map(read_header, paths[1:])]
    for number, header in enumerate(headers):
        if (header.metadata.get("split.no"), header.metadata.get("split.count")) != (number, count):
            raise GgufError(f"{header.path} does not say that it is part {number + 1} of {count}")
    file = GgufFile(headers)
    total = first.metadata.get("split.tensors.count", len(file.tensors))
    if total != len(file.tensors):
        raise GgufError(f"{paths[0]} and its other parts hold {len(file.tensors)} tensors, it says {total}")
    return file


def part_paths(path: Path) -> tuple[Path, ...]:
    """The files of a model, in order: all parts if the name is that of one, whichever; else the one.

    Raises:
        GgufError: A part is missing.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count <= _MAX_PARTS:
        raise GgufError(f"{path} is named as part {int(match['number'])} of {count}; supported: up to {_MAX_PARTS} parts")
    paths = tuple(path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1))
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise GgufError(f"{path.name} is a part of a model whose part {missing[0]} is not beside it in {path.parent}")
    return paths


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a model folder, sorted; they may be links to files elsewhere."""
    return sorted(folder.glob("*.gguf"))


def gguf_of(folder: Path) -> Path | None:
    """The GGUF file, or the first part of the split one, that holds a model folder's weights; None if there is none.

    Raises:
        GgufError: There are several models, or a part is missing.
    """
    paths = gguf_files(folder)
    if not paths:
        return None
    parts = part_paths(paths[0])
    if len(parts) != len(paths):
        raise GgufError(f"{folder} holds several GGUF models, {paths[0].name} and {paths[-1].name}: keep one")
    return parts[0]
