"""Turns the blocks of GGUF tensors into float32, a bounded piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from triserve.model_files.gguf_blocks import BLOCK_FORMATS
from triserve.model_files.gguf_header import GgufError, GgufTensor

Floats = npt.NDArray[np.float32]

# What `gguf.quants` has tables and formulas for; the rest of the formats are integers or live in memory alone, never in published files.
_FLOAT_FORMATS = ("F32", "F16", "BF16", "F64")
_BLOCK_FORMATS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0")
_CODEBOOK_FORMATS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "MXFP4", "NVFP4")
READABLE_FORMATS = frozenset((*_FLOAT_FORMATS, *_BLOCK_FORMATS, *_CODEBOOK_FORMATS))

_CODES = {block.name: code for code, block in BLOCK_FORMATS.items()}
_PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
# Weights per piece: unpacking makes several copies of one.
_PIECE_WEIGHTS = 1 << 20


def require_readable(tensor: GgufTensor) -> None:
    """Raises GgufError if the tensor is in a format that is not read."""
    if tensor.format.name not in READABLE_FORMATS:
        raise GgufError(f"{tensor.path}: tensor {tensor.name} is stored as {tensor.format.name}, which is not supported")


def read_rows(tensor: GgufTensor, first: int, count: int) -> Floats:
    """Some rows of a tensor, all its dimensions but the last taken as one.

    Args:
        tensor: Where they lie.
        first: The first one.
        count: How many.

    Returns:
        [count, columns], exactly what the format says its blocks mean; nothing is rounded but F64.

    Raises:
        GgufError: The format is not read, or the file has become shorter or unreadable since its header was read.
    """
    require_readable(tensor)
    numbers = np.empty((count, tensor.shape[-1]), np.float32)
    # A row may be longer than a piece: pieces are whole blocks, not whole rows.
    flat = numbers.reshape(-1)
    done = 0
    for content in read_blocks(tensor, first, count):
        weights = dequantise(content, tensor.format.name)
        flat[done : done + len(weights)] = weights
        done += len(weights)
    return numbers


def read_blocks(tensor: GgufTensor, first: int, count: int) -> Iterator[bytes]:
    """The blocks of some rows, a bounded number of them at a time.

    Args:
        tensor: Where they lie.
        first: The first row, all dimensions but the last taken as one.
        count: How many rows.

    Raises:
        GgufError: The file has become shorter or unreadable since its header was read.
    """
    columns, rows = tensor.shape[-1], math.prod(tensor.shape[:-1])
    assert first >= 0 and first + count <= rows, "the rows are the tensor's"
    row_blocks = columns // tensor.format.weights
    piece_blocks = max(1, _PIECE_WEIGHTS // tensor.format.weights)
    try:
        with tensor.path.open("rb") as file:
            file.seek(tensor.offset + first * row_blocks * tensor.format.num_bytes)
            left = count * row_blocks
            while left:
                blocks = min(piece_blocks, left)
                yield _read(file, blocks * tensor.format.num_bytes, tensor)
                left -= blocks
    except OSError as error:
        raise GgufError(f"{tensor.path} cannot be read: {error.strerror or error}") from error


def dequantise(content: bytes, block_format: str) -> Floats:
    """The weights of whole blocks, flat.

    Args:
        content: The blocks, one after another.
        block_format: One of READABLE_FORMATS.
    """
    if block_format in _PLAIN:
        return np.frombuffer(content, _PLAIN[block_format]).astype(np.float32)
    # Brings much along that only conversion and loading of GGUF need.
    from gguf.constants import GGMLQuantizationType  # noqa: PLC0415
    from gguf.quants import dequantize  # noqa: PLC0415

    code = _CODES[block_format]
    # One long row: rows are unpacked a few at a time.
    blocks = np.frombuffer(content, np.uint8).reshape(1, -1)
    # A block's scale may be any float16, infinities too: those are the file's, and loading looks for them where it looks for NaN.
    with np.errstate(all="ignore"):
        weights: Floats = dequantize(blocks, GGMLQuantizationType(code))
    return weights.reshape(-1)


def _read(file: BinaryIO, num_bytes: int, tensor: GgufTensor) -> bytes:
    content = file.read(num_bytes)
    if len(content) != num_bytes:
        raise GgufError(f"{tensor.path} ends within tensor {tensor.name}: it has been cut off since it was opened")
    return content
