"""Builds GGUF files byte by byte, so that a test can say of each byte what it likes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, Q4_0 = 0, 2


class RawTensor(NamedTuple):
    """What the header says of a tensor; dimensions fastest first, as in the file."""

    name: str
    dimensions: Sequence[int]
    code: int = F32
    offset: int = 0


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    content = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(content)) + content


def entry(key: str, code: int, content: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", code) + content


def array_of(code: int, count: int, content: bytes) -> bytes:
    """The content of an array entry."""
    return struct.pack("<IQ", code, count) + content


def tensor_info(tensor: RawTensor) -> bytes:
    """A tensor's entry of the header."""
    sizes = struct.pack(f"<I{len(tensor.dimensions)}Q", len(tensor.dimensions), *tensor.dimensions)
    return text(tensor.name) + sizes + struct.pack("<IQ", tensor.code, tensor.offset)


def gguf_bytes(
    entries: Sequence[bytes] = (),
    tensors: Sequence[RawTensor] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    num_tensors: int | None = None,
    num_entries: int | None = None,
    alignment: int = 32,
    data: bytes = b"",
) -> bytes:
    """A file; the counts are what they should be unless given."""
    counts = (len(tensors) if num_tensors is None else num_tensors, len(entries) if num_entries is None else num_entries)
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(map(tensor_info, tensors))
    return header + bytes(-len(header) % alignment) + data
