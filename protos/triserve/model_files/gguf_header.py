"""Reads the header of one GGUF file: metadata, and where its tensors lie. Hostile files are refused before they cost anything.

    GgufError: the file cannot be used, and why

Layout, little-endian: magic "GGUF", version, number of tensors, number of metadata entries; the entries; the tensors' names, shapes, formats and
offsets; padding to the alignment; the tensors' blocks. Every count and length is compared with what is left of the file before anything
is made of it, so that a header of n bytes never costs more than a small multiple of n.
"""

from __future__ import annotations

import itertools
import math
import struct
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from triserve.model_files.gguf_blocks import BLOCK_FORMATS, BlockFormat

Value: TypeAlias = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float] | Sequence[str]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
# Limits of a header. The largest published vocabularies have 262,144 entries, the largest models some thousand tensors.
_MAX_HEADER_BYTES = 256 << 20
_MAX_ENTRIES = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_ITEMS = 1 << 22
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_STRING_BYTES = 4 << 20
_MAX_TENSOR_NAME_BYTES = 64
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_MAX_WEIGHTS = 1 << 48

_BOOL, _STRING, _ARRAY, _FLOAT32 = 7, 8, 9, 6
# Code of a metadata type: its form for struct and array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", _FLOAT32: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}


class GgufError(Exception):
    """A GGUF file cannot be used; the message names the file and what is wrong with it."""


class GgufTensor(NamedTuple):
    """Where a tensor lies.

    Attributes:
        name: As the file calls it.
        shape: Slowest dimension first, as numpy has it; the last is a multiple of the block's weights.
        format: How its weights are stored.
        path: The file.
        offset: Of its first byte in the file.
        num_bytes: Of all its blocks.
    """

    name: str
    shape: tuple[int, ...]
    format: BlockFormat
    path: Path
    offset: int
    num_bytes: int


class GgufHeader(NamedTuple):
    """What a file says of itself.

    Attributes:
        path: The file.
        metadata: By key, in the file's order.
        tensors: By name, in the file's order.
    """

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, GgufTensor]


def read_header(path: Path) -> GgufHeader:
    """Reads and checks a file's header.

    Raises:
        GgufError: It cannot be read, is no GGUF of version 2 or 3, or something in it is out of bounds.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return _HeaderReader(path, file, size).read()
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror or error}") from error


class _HeaderReader:
    """One pass over a header."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        # How much of the file may still be header.
        self._left = min(size, _MAX_HEADER_BYTES)

    def read(self) -> GgufHeader:
        if self._take(min(4, self._left), "the magic number") != _MAGIC:
            raise self._error("it does not begin with GGUF")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = ", big-endian; only little-endian files are read" if swapped in _VERSIONS else f"; supported: {_VERSIONS}"
            raise self._error(f"its version is {version if swapped not in _VERSIONS else swapped}{hint}")
        num_tensors = self._count("the number of tensors", limit=_MAX_TENSORS, least_bytes=8 + 4 + 8 + 4 + 8)
        num_entries = self._count("the number of metadata entries", limit=_MAX_ENTRIES, least_bytes=8 + 4 + 1)
        metadata: dict[str, Value] = {}
        for index in range(num_entries):
            key = self._string(f"the key of metadata entry {index}", limit=_MAX_KEY_BYTES)
            if key in metadata:
                raise self._error(f"metadata has {key!r} twice")
            metadata[key] = self._value(self._number("I", f"the type of {key!r}"), key)
        infos = [self._tensor_info(index) for index in range(num_tensors)]
        alignment = self._alignment(metadata)
        data_start = -(-self._file.tell() // alignment) * alignment
        return GgufHeader(self._path, metadata, self._placed(infos, data_start, alignment))

    def _error(self, problem: str) -> GgufError:
        return GgufError(f"{self._path} is no GGUF file that can be read: {problem}")

    def _take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > self._left:
            end = "the file ends" if self._size <= _MAX_HEADER_BYTES else f"the header is longer than {_MAX_HEADER_BYTES} bytes"
            raise self._error(f"{end} within {what}")
        self._left -= num_bytes
        content = self._file.read(num_bytes)
        if len(content) != num_bytes:
            raise self._error(f"the file ends within {what}")
        return content

    def _number(self, form: str, what: str) -> int:
        return int(struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}"), what))[0])

    def _count(self, what: str, *, limit: int, least_bytes: int) -> int:
        count = self._number("Q", what)
        if count > limit:
            raise self._error(f"{what} is {count}, the limit is {limit}")
        if count * least_bytes > self._left:
            raise self._error(f"{what} is {count}, the file has room for {self._left // least_bytes}")
        return count

    def _string(self, what: str, *, limit: int = _MAX_STRING_BYTES) -> str:
        length = self._number("Q", f"the length of {what}")
        if length > limit:
            raise self._error(f"{what} has {length} bytes, the limit is {limit}")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self._error(f"{what} is not UTF-8") from None

    def _value(self, code: int, key: str) -> Value:
        what = f"metadata {key!r}"
        if code == _STRING:
            return self._string(what)
        if code == _ARRAY:
            return self._array(key)
        form = self._form(code, key)
        (value,) = struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}"), what))
        if code == _BOOL:
            return self._flags([value], key)[0]
        return _shortest(value) if code == _FLOAT32 else value

    def _form(self, code: int, key: str) -> str:
        if code not in _SCALARS:
            raise self._error(f"metadata {key!r} has the unknown type {code}")
        return _SCALARS[code]

    def _array(self, key: str) -> Value:
        code = self._number("I", f"the type of items of {key!r}")
        what = f"the number of items of {key!r}"
        if code == _ARRAY:
            raise self._error(f"metadata {key!r} is an array of arrays, which is not supported")
        if code == _STRING:
            return [self._string(f"an item of {key!r}") for _ in range(self._count(what, limit=_MAX_ITEMS, least_bytes=8))]
        form = self._form(code, key)
        size = struct.calcsize(f"<{form}")
        count = self._count(what, limit=_MAX_ITEMS, least_bytes=size)
        content = self._take(count * size, f"metadata {key!r}")
        if code == _BOOL:
            return self._flags(content, key)
        values = array(form, content) if array(form).itemsize == size else array(form, struct.unpack(f"<{count}{form}", content))
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def _flags(self, values: Sequence[int], key: str) -> list[bool]:
        if any(value > 1 for value in values):
            raise self._error(f"metadata {key!r} has a truth value that is neither 0 nor 1")
        return [value == 1 for value in values]

    def _tensor_info(self, index: int) -> tuple[str, tuple[int, ...], BlockFormat, int]:
        """Name, shape, format and offset in the data section."""
        name = self._string(f"the name of tensor {index}", limit=_MAX_TENSOR_NAME_BYTES)
        num_dimensions = self._number("I", f"the number of dimensions of {name!r}")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise self._error(f"tensor {name!r} has {num_dimensions} dimensions, supported: 1 to {_MAX_DIMENSIONS}")
        shape = tuple(reversed([self._number("Q", f"the shape of {name!r}") for _ in range(num_dimensions)]))
        code = self._number("I", f"the format of {name!r}")
        if code not in BLOCK_FORMATS:
            raise self._error(f"tensor {name!r} has the unknown format {code}")
        block = BLOCK_FORMATS[code]
        if min(shape) < 1 or math.prod(shape) > _MAX_WEIGHTS:
            raise self._error(f"tensor {name!r} has the shape {list(shape)}; it must have from 1 to {_MAX_WEIGHTS} weights")
        if shape[-1] % block.weights:
            raise self._error(f"tensor {name!r} has rows of {shape[-1]} weights, which are no whole {block.name} blocks of {block.weights}")
        return name, shape, block, self._number("Q", f"the offset of {name!r}")

    def _alignment(self, metadata: dict[str, Value]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {_shown(alignment)}, it must be a power of two up to {_MAX_ALIGNMENT}")
        return alignment

    def _placed(self, infos: list[tuple[str, tuple[int, ...], BlockFormat, int]], data_start: int, alignment: int) -> dict[str, GgufTensor]:
        """The tensors where they lie in the file: within it, aligned, and none over another."""
        tensors: dict[str, GgufTensor] = {}
        for name, shape, block, offset in infos:
            num_bytes = math.prod(shape) // block.weights * block.num_bytes
            if name in tensors:
                raise self._error(f"there are two tensors {name!r}")
            if offset % alignment:
                raise self._error(f"tensor {name!r} begins at {offset}, which is no multiple of the alignment, {alignment}")
            if data_start + offset + num_bytes > self._size:
                raise self._error(
                    f"tensor {name!r} ends at byte {data_start + offset + num_bytes}, the file has {self._size}: is it cut off?"
                )
            tensors[name] = GgufTensor(name, shape, block, self._path, data_start + offset, num_bytes)
        ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
        for first, second in itertools.pairwise(ordered):
            if first.offset + first.num_bytes > second.offset:
                raise self._error(f"tensors {first.name!r} and {second.name!r} overlap")
        return tensors


def _shown(value: Value) -> str:
    return repr(value) if isinstance(value, bool | int | float) else f"a {type(value).__name__}"


def _shortest(value: float) -> float:
    """The number with the fewest digits that rounds to this float32: 1e-05 where the file has 9.999999747378752e-06."""
    if not math.isfinite(value):
        return value
    stored = struct.pack("<f", value)
    for digits in range(1, 10):
        candidate = float(f"{value:.{digits}g}")
        # Rounded up, the greatest float32 is out of range.
        if abs(candidate) <= sys.float_info.max and _packs_to(candidate, stored):
            return candidate
    return value


def _packs_to(candidate: float, stored: bytes) -> bool:
    try:
        return struct.pack("<f", candidate) == stored
    except OverflowError:
        return False
