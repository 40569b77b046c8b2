"""Integer weights as the library takes them: `IntWeight` of source/int_products.h, which also says how they are laid out."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
import torch.nn.functional as F

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.host.huge_pages import in_huge_pages

_TILE, _BLOCK = 16, 32
_INPUTS_TOGETHER = 8
# `kTilesAtOnce` of source/int_vectors.h.
_TILES_AT_ONCE: dict[InstructionSet, int] = {"avx512_vnni": 2, "avx2": 1, "portable": 1}

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class NativeWeight(ctypes.Structure):
    """Addresses within a `TiledWeight`, and its sizes."""

    _fields_ = (
        ("data", _POINTER),
        ("scales", _POINTER),
        ("offsets", _POINTER),
        ("bias", _POINTER),
        ("columns", _NUMBER),
        ("inputs", _NUMBER),
        ("outputs", _NUMBER),
        ("group", _NUMBER),
        ("groups", _NUMBER),
        ("bits", _NUMBER),
        ("zero_point", _NUMBER),
        ("half_scales", _NUMBER),
        ("row_groups", _NUMBER),
    )


# Types of the functions' arguments: what is given, its scales and rows, weights, activation, what is added, result, dtype, threads.
_WEIGHT = ctypes.POINTER(NativeWeight)
_NORMED = (_POINTER, _NUMBER, _POINTER, ctypes.c_double)
INT_LINEAR = (_POINTER, _POINTER, _NUMBER, _NUMBER, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)
INT_GATED_LINEAR = (_POINTER, _POINTER, _NUMBER, _NUMBER, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _NUMBER, _NUMBER)
INT_LINEAR_OF = (*_NORMED, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)
INT_MLP = (*_NORMED, _WEIGHT, _WEIGHT, _WEIGHT, _NUMBER, _POINTER, _POINTER, _NUMBER, _NUMBER)


class TiledWeight(NamedTuple):
    """A weight in the library's tiles; the tensors must live as long as `native` is used.

    Attributes:
        data: uint8.
        scales: float16 where that changes no scale and no offset, else float32.
        offsets: As scales; None = zero.
        bias: float32, filled up to whole blocks; None = zero.
        native: What functions are given.
    """

    data: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    bias: torch.Tensor | None
    native: NativeWeight


def tile_weight(
    codes: torch.Tensor,
    bits: int,
    group: int,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    bias: torch.Tensor | None,
    rows_in_groups: bool,
    built_for: InstructionSet,
) -> TiledWeight:
    """Lays out a weight, given as to `pack_ints`, for the library of an instruction set."""
    out_features, in_features = codes.shape
    outputs, inputs = -(-out_features // _BLOCK) * _BLOCK, -(-in_features // _INPUTS_TOGETHER) * _INPUTS_TOGETHER
    at_once = _TILES_AT_ONCE[built_for]
    zero_point = _zero_point(codes, bits, built_for)
    # What is filled up counts for nothing: no output is asked for, and activations are filled up with zeros.
    filled = F.pad(codes, (0, inputs - in_features, 0, outputs - out_features))
    tiles = filled.view(outputs // _TILE // at_once, at_once, _TILE, inputs // 4, 4).permute(0, 3, 1, 2, 4).contiguous()
    if bits == 8 and built_for == "avx2":
        tiles = tiles.view(*tiles.shape[:-1], 2, 2).transpose(-2, -3).contiguous()
    # A sum in bytes wraps, and adding 128 is taking 128 away.
    data = tiles.add_(zero_point if zero_point < 128 else zero_point - 256).view(torch.uint8)
    if bits == 4:
        data = data[:, 0::2] | (data[:, 1::2] << 4)
    data = in_huge_pages(data)
    # With groups of 32 and 4 bits, scales in float32 would be a fifth of what is read.
    dtype = torch.float16 if _fits_halves(scales) and (offsets is None or _fits_halves(offsets)) else torch.float32
    tiled_scales = in_huge_pages(_tile_groups(scales, outputs, at_once, dtype))
    tiled_offsets = None if offsets is None else in_huge_pages(_tile_groups(offsets, outputs, at_once, dtype))
    filled_bias = None if bias is None else F.pad(bias.float(), (0, outputs - out_features))
    native = NativeWeight(
        data=data.data_ptr(),
        scales=tiled_scales.data_ptr(),
        offsets=None if tiled_offsets is None else tiled_offsets.data_ptr(),
        bias=None if filled_bias is None else filled_bias.data_ptr(),
        columns=in_features,
        inputs=inputs,
        outputs=out_features,
        group=min(group, inputs),
        groups=scales.shape[1],
        bits=bits,
        zero_point=zero_point,
        half_scales=int(dtype == torch.float16),
        row_groups=scales.shape[1] if rows_in_groups else 1,
    )
    return TiledWeight(data, tiled_scales, tiled_offsets, filled_bias, native)


def _zero_point(codes: torch.Tensor, bits: int, built_for: InstructionSet) -> int:
    """What is added to codes: halves of bytes have no sign, nor have the bytes of AVX-512's dot product."""
    if bits == 8:
        return 128 if built_for == "avx512_vnni" else 0
    return 8 if bool((codes < 0).any()) else 0


def _fits_halves(values: torch.Tensor) -> bool:
    halves = values.to(torch.float16)
    return bool((halves.isfinite() & (halves.float() == values.float())).all())


def _tile_groups(values: torch.Tensor, outputs: int, at_once: int, dtype: torch.dtype) -> torch.Tensor:
    filled = F.pad(values.to(dtype), (0, 0, 0, outputs - len(values)))
    return filled.view(outputs // _TILE // at_once, at_once * _TILE, -1).transpose(1, 2).contiguous()
