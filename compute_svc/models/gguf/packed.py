"""Rows of GGUF tensors as codes: what their blocks hold, without a number computed that is not exact.

A block's scale has eleven bits and its groups' scales have six to eight: products of both are exact in float32, so that the weight of the codes is,
bit for bit, what `dequantise` makes of the blocks. Codes of five and six bits take eight, those of three take four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.models.gguf.dequantise import read_blocks
from compute_svc.stored_weights.coded_weight import CodedWeight
from compute_svc.stored_weights.codes import BITS, Code, pack_codes
from triserve.model_files.gguf_header import GgufTensor

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float16] | npt.NDArray[np.float32]

# Weights per piece: unpacking makes several copies of one.
_PIECE_WEIGHTS = 1 << 20


class _Blocks(NamedTuple):
    """Some blocks, taken apart.

    Attributes:
        codes: [blocks, weights] integers, negative ones as a byte has them.
        scales: [blocks, groups].
        offsets: [blocks, groups]; None = 0.
    """

    codes: Bytes
    scales: Numbers
    offsets: Numbers | None = None


class _Format(NamedTuple):
    """How the blocks of a format become codes.

    Attributes:
        code: What a code is.
        group: Weights that share a scale.
        take_apart: Of blocks [blocks, bytes].
    """

    code: Code
    group: int
    take_apart: Callable[[Bytes], _Blocks]


def can_stay_packed(tensor: GgufTensor) -> bool:
    """Whether `read_packed_rows` reads a tensor."""
    return len(tensor.shape) > 1 and tensor.format.name in _FORMATS


def packed_bytes(format_name: str, rows: int, columns: int) -> int:
    """Memory of rows in a format that can stay packed, with a scale and an offset in float32 for each group: what they take at most."""
    code, group, _ = _FORMATS[format_name]
    return rows * (columns * BITS[code] // 8 + 8 * -(-columns // group))


def read_packed_rows(tensor: GgufTensor, first: int, count: int) -> CodedWeight:
    """Some rows of a tensor, all its dimensions but the last taken as one.

    Args:
        tensor: Where they lie; in a format that can stay packed.
        first: The first one.
        count: How many.

    Raises:
        GgufError: The file has become shorter or unreadable since its header was read.
    """
    code, group, take_apart = _FORMATS[tensor.format.name]
    columns = tensor.shape[-1]
    pieces = []
    step = max(1, _PIECE_WEIGHTS // columns)
    for start in range(first, first + count, step):
        rows = min(step, first + count - start)
        content = np.concatenate([np.frombuffer(piece, np.uint8) for piece in read_blocks(tensor, start, rows)])
        # What is not finite is the file's, and loading looks for it.
        with np.errstate(all="ignore"):
            blocks = take_apart(content.reshape(-1, tensor.format.num_bytes))
        pieces.append(_by_row(blocks, rows, BITS[code]))
    data, scales, offsets = zip(*pieces, strict=True)
    return CodedWeight(
        code=code,
        data=torch.cat(data),
        num_columns=columns,
        group=group,
        scales=torch.cat(scales),
        offsets=None if offsets[0] is None else torch.cat(offsets),
    )


def _by_row(blocks: _Blocks, rows: int, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes, scales and offsets, [rows, ...] each."""
    data = pack_codes(torch.from_numpy(blocks.codes.reshape(rows, -1)), bits)
    scales = torch.from_numpy(blocks.scales.reshape(rows, -1))
    return data, scales, None if blocks.offsets is None else torch.from_numpy(blocks.offsets.astype(np.float32).reshape(rows, -1))


def _halves(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    """[blocks, 1]: a number that each has at a byte."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")


def _bits(content: Bytes, bits: int) -> Bytes:
    """[blocks, 8 / bits, bytes]: the lowest bits of all bytes, then the next ones."""
    return (content[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]) & np.uint8((1 << bits) - 1)


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    """[blocks, 32]: of 16 bytes, the lower ones first."""
    return _bits(blocks[:, at : at + 16], 4).reshape(-1, 32)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """[blocks, 32]: a bit for each weight, in its place above a nibble."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << np.uint8(4)


def _q4_0(blocks: Bytes) -> _Blocks:
    return _Blocks(_nibbles(blocks, 2) - np.uint8(8), _halves(blocks, 0))


def _q4_1(blocks: Bytes) -> _Blocks:
    return _Blocks(_nibbles(blocks, 4), _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(blocks: Bytes) -> _Blocks:
    return _Blocks((_nibbles(blocks, 6) | _fifth_bits(blocks, 2)) - np.uint8(16), _halves(blocks, 0))


def _q5_1(blocks: Bytes) -> _Blocks:
    return _Blocks(_nibbles(blocks, 8) | _fifth_bits(blocks, 4), _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: Bytes) -> _Blocks:
    return _Blocks(blocks[:, 2:], _halves(blocks, 0))


def _wide_halves(blocks: Bytes, at: int) -> npt.NDArray[np.float32]:
    return _halves(blocks, at).astype(np.float32)


def _q2_k(blocks: Bytes) -> _Blocks:
    codes = _bits(blocks[:, 16:80].reshape(-1, 32), 2)
    scales, minima = blocks[:, :16] & np.uint8(15), blocks[:, :16] >> np.uint8(4)
    return _Blocks(codes.reshape(-1, 256), _wide_halves(blocks, 80) * scales, -(_wide_halves(blocks, 82) * minima))


def _q3_k(blocks: Bytes) -> _Blocks:
    low = _bits(blocks[:, 32:96].reshape(-1, 32), 2).reshape(-1, 256)
    # A bit that is not set stands for four less.
    codes = low + (_bits(blocks[:, :32], 1).reshape(-1, 256) << np.uint8(2)) - np.uint8(4)
    packed = blocks[:, 96:108]
    scales = _bits(packed[:, :8], 4).reshape(-1, 16) | _bits(packed[:, 8:], 2).reshape(-1, 16) << np.uint8(4)
    return _Blocks(codes, _wide_halves(blocks, 108) * (scales.astype(np.float32) - np.float32(32)))


def _scales_and_minima(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[blocks, 8] of six bits each: four plain ones of both, the upper bits of which belong to the other four."""
    scales, minima, shared = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    six, four, two = np.uint8(63), np.uint8(15), np.uint8(0x30)
    return (
        np.concatenate((scales & six, shared & four | scales >> np.uint8(2) & two), axis=1),
        np.concatenate((minima & six, shared >> np.uint8(4) | minima >> np.uint8(2) & two), axis=1),
    )


def _of_groups(blocks: Bytes, codes: Bytes) -> _Blocks:
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    return _Blocks(codes, _wide_halves(blocks, 0) * scales, -(_wide_halves(blocks, 2) * minima))


def _q4_k(blocks: Bytes) -> _Blocks:
    return _of_groups(blocks, _bits(blocks[:, 16:].reshape(-1, 32), 4).reshape(-1, 256))


def _q5_k(blocks: Bytes) -> _Blocks:
    low = _bits(blocks[:, 48:].reshape(-1, 32), 4).reshape(-1, 256)
    return _of_groups(blocks, low | _bits(blocks[:, 16:48], 1).reshape(-1, 256) << np.uint8(4))


def _q6_k(blocks: Bytes) -> _Blocks:
    low = _bits(blocks[:, :128].reshape(-1, 64), 4).reshape(-1, 256)
    high = _bits(blocks[:, 128:192].reshape(-1, 32), 2).reshape(-1, 256)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _Blocks((low | high << np.uint8(4)) - np.uint8(32), _wide_halves(blocks, 208) * scales)


_FORMATS = {
    "Q4_0": _Format("int4", 32, _q4_0),
    "Q4_1": _Format("uint4", 32, _q4_1),
    "Q5_0": _Format("int8", 32, _q5_0),
    "Q5_1": _Format("uint8", 32, _q5_1),
    "Q8_0": _Format("int8", 32, _q8_0),
    "Q2_K": _Format("uint2", 16, _q2_k),
    "Q3_K": _Format("int4", 16, _q3_k),
    "Q4_K": _Format("uint4", 32, _q4_k),
    "Q5_K": _Format("uint8", 32, _q5_k),
    "Q6_K": _Format("int8", 16, _q6_k),
}
PACKED_FORMATS = frozenset(_FORMATS)
"""Those that `read_packed_rows` reads."""
