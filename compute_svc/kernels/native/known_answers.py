"""Small computations whose results are known beforehand: a compiler or CPU that gets them wrong does not compute for anybody."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch

from compute_svc.kernels.native.attention_answers import check_attention
from compute_svc.kernels.native.library import DTYPES, KnownAnswerError, NativeLibrary

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# Odd, so that what is left over behind whole vectors counts too.
_COLUMNS = 83


def check_known_answers(library: NativeLibrary) -> None:
    """Computes them all.

    Raises:
        KnownAnswerError: One is wrong; names the function.
    """
    for check in _CHECKS:
        check(library)


def _check_threads(library: NativeLibrary) -> None:
    counts = torch.zeros(1000, dtype=torch.int64)
    count_up = library.function("triserve_count_up", (_POINTER, _NUMBER, _NUMBER))
    count_up(counts.data_ptr(), len(counts), torch.get_num_threads())
    _require("threads", counts, torch.arange(len(counts)))


def _check_quantise_rows(library: NativeLibrary) -> None:
    # Halves between two codes go to the even one. The largest of a row is 127 times a power of two, so nothing else is rounded.
    codes = torch.arange(_COLUMNS, dtype=torch.float32) - 41.0
    codes[5], codes[_COLUMNS - 1] = -127.0, 127.0
    x = torch.stack(((codes + 0.5).clamp_(-127.0, 127.0) * 0.25, torch.zeros(_COLUMNS), codes * 8.0))
    expected = torch.stack((((codes + 0.5).clamp_(-127.0, 127.0)).round(), torch.zeros(_COLUMNS), codes)).to(torch.int8)
    quantise = library.function(
        "triserve_quantise_rows", (_POINTER, _NUMBER, _NUMBER, _NUMBER, _POINTER, ctypes.c_double, _POINTER, _POINTER, _NUMBER)
    )
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        got, scales = torch.full_like(given, 99, dtype=torch.int8), torch.full((3,), torch.nan)
        quantise(given.data_ptr(), DTYPES[dtype], 3, _COLUMNS, None, 0.0, got.data_ptr(), scales.data_ptr(), torch.get_num_threads())
        _require(f"quantise_rows of {dtype}", got, expected)
        _require(f"quantise_rows of {dtype}", scales, torch.tensor([0.25, 0.0, 8.0]))


def _check_kv_write(library: NativeLibrary) -> None:
    # Two heads of 83 numbers in groups of 32 for slots 2 and 0. Each group has the number that is 127 times its scale, a power of two.
    codes = (torch.arange(2 * 2 * _COLUMNS).view(2, 2, _COLUMNS) * 37 % 253 - 126).float()
    codes[:, :, [0, 40, 82]] = 127.0
    scales = torch.tensor([0.25, 2.0, 0.125]).half()
    rows = codes * scales.float().repeat_interleave(32)[:_COLUMNS]
    stored = torch.zeros((2, 3, _COLUMNS), dtype=torch.int8)
    stored_scales = torch.zeros((2, 3, 3), dtype=torch.float16)
    slots, wrong = torch.tensor([2, 0]), torch.tensor([-1])
    write = library.function("triserve_kv_write_int8", (*(_POINTER, *(_NUMBER,) * 5), *(_POINTER,) * 3, *(_NUMBER,) * 4, _POINTER))
    for dtype in (torch.float32, torch.bfloat16):
        given = rows.to(dtype)
        write(
            *(given.data_ptr(), DTYPES[dtype], 2 * _COLUMNS, _COLUMNS, 2, 2, slots.data_ptr(), stored.data_ptr(), stored_scales.data_ptr()),
            *(3, _COLUMNS, 32, torch.get_num_threads(), wrong.data_ptr()),
        )
        _require(f"kv_write of {dtype}", stored[:, slots], codes.transpose(0, 1).to(torch.int8))
        _require(f"kv_write of {dtype}", stored_scales[:, slots], scales.expand(2, 2, 3))


def _require(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(got, expected):
        raise KnownAnswerError(f"{name} gives wrong answers")


_CHECKS: tuple[Callable[[NativeLibrary], None], ...] = (_check_threads, _check_quantise_rows, _check_kv_write, check_attention)
