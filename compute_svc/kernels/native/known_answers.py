"""Small computations whose results are known beforehand: a compiler or CPU that gets them wrong does not compute for anybody."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
import torch.nn.functional as F

from compute_svc.kernels.native.attention_answers import check_attention, check_place_heads
from compute_svc.kernels.native.float_weight import FLOAT_GATED_LINEAR, FLOAT_LINEAR, FLOAT_MLP, panel_weight
from compute_svc.kernels.native.int_weight import INT_LINEAR, INT_LINEAR_OF, INT_MLP, tile_weight
from compute_svc.kernels.native.library import DTYPES, QUANTISE_ROWS, KnownAnswerError, NativeLibrary

_POINTER, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# Odd, so that what is left over behind whole vectors counts too.
_COLUMNS = 83
_OUTPUTS = 37
_RELU = 4


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
    quantise = library.function("triserve_quantise_rows", QUANTISE_ROWS)
    for dtype in (torch.float32, torch.bfloat16):
        given = x.to(dtype)
        got, scales = torch.full_like(given, 99, dtype=torch.int8), torch.full((3,), torch.nan)
        quantise(
            given.data_ptr(), DTYPES[dtype], 3, _COLUMNS, _COLUMNS, None, 0.0, got.data_ptr(), scales.data_ptr(), torch.get_num_threads()
        )
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


def _check_int_linear(library: NativeLibrary) -> None:
    """All signs of the largest products, whose sums in 16 bits would saturate, and of others."""
    linear = library.function("triserve_int_linear", INT_LINEAR)
    for bits, group, low, high in ((8, _COLUMNS, -128, 127), (8, 32, -128, 127), (4, _COLUMNS, -8, 7), (4, 32, 0, 15)):
        weight = torch.stack([_pattern(shift, low, high) for shift in range(_OUTPUTS)])
        scales = torch.exp2(-(torch.arange(_OUTPUTS * -(-_COLUMNS // group)) % 3).float()).view(_OUTPUTS, -1)
        offsets = 3.0 - scales if low == 0 else None
        bias = torch.arange(_OUTPUTS, dtype=torch.float32)
        tiled = tile_weight(weight, bits, group, scales, offsets, bias, False, library.instruction_set)
        for num_rows in (1, 13):
            codes = torch.stack([_pattern(5 * shift, -127, 127) for shift in range(num_rows)])
            filled = F.pad(codes, (0, tiled.native.inputs - _COLUMNS))
            row_scales = torch.full((num_rows,), 0.5)
            got = torch.full((num_rows, _OUTPUTS), torch.nan)
            linear(filled.data_ptr(), row_scales.data_ptr(), 1, num_rows, tiled.native, 0, None, got.data_ptr(), 0, torch.get_num_threads())
            _require(f"int_linear of {bits} bits", got, expected_products(codes, weight, group, scales, offsets) * 0.5 + bias)


def _check_float_linear(library: NativeLibrary) -> None:
    """Small whole numbers, whose sums need no rounding, of one row and of more than are multiplied at once."""
    linear = library.function("triserve_float_linear", FLOAT_LINEAR)
    gated = library.function("triserve_float_gated_linear", FLOAT_GATED_LINEAR)
    mlp = library.function("triserve_float_mlp", FLOAT_MLP)
    weight = torch.stack([_pattern(shift, -1, 1) for shift in range(_OUTPUTS)]).float()
    bias = torch.arange(_OUTPUTS, dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        panels = panel_weight(weight.to(dtype), bias, library.instruction_set)
        back = panel_weight(weight.T.to(dtype), None, library.instruction_set)
        for num_rows in (1, 29):
            x = torch.stack([_pattern(5 * shift, -2, 2) for shift in range(num_rows)]).to(dtype)
            expected = x.float() @ weight.T + bias
            got, summed = torch.full((num_rows, _OUTPUTS), torch.nan, dtype=dtype), torch.full_like(x, torch.nan)
            rest = (got.data_ptr(), torch.get_num_threads())
            linear(x.data_ptr(), num_rows, None, 0.0, panels.native, 0, None, *rest)
            _require(f"float_linear of {dtype}", got, expected.to(dtype))
            gated(x.data_ptr(), num_rows, None, 0.0, panels.native, panels.native, _RELU, *rest)
            hidden = expected.clamp(min=0.0) * expected
            _require(f"float_gated_linear of {dtype}", got, hidden.to(dtype))
            mlp(
                x.data_ptr(),
                num_rows,
                None,
                0.0,
                panels.native,
                panels.native,
                back.native,
                _RELU,
                x.data_ptr(),
                summed.data_ptr(),
                rest[1],
            )
            _require(f"float_mlp of {dtype}", summed, (hidden @ weight + x.float()).to(dtype))


def _pattern(shift: int, low: int, high: int) -> torch.Tensor:
    """[_COLUMNS] int8: both ends in runs of two, and what lies between."""
    numbers = torch.arange(_COLUMNS) + shift
    between = low + numbers * 37 % (high - low + 1)
    return torch.where(numbers % 8 < 2, low, torch.where(numbers % 8 < 4, high, between)).to(torch.int8)


def expected_products(
    codes: torch.Tensor, weight: torch.Tensor, group: int, scales: torch.Tensor, offsets: torch.Tensor | None
) -> torch.Tensor:
    """[M, N] float32, of numbers that need no rounding."""
    total = torch.zeros(len(codes), len(weight), dtype=torch.float64)
    for index, begin in enumerate(range(0, _COLUMNS, group)):
        x, w = codes[:, begin : begin + group].long(), weight[:, begin : begin + group].long()
        total += scales[:, index] * (x[:, None, :] * w).sum(dim=2)
        if offsets is not None:
            total += offsets[:, index] * x.sum(dim=1)[:, None]
    return total.float()


def _check_layer_parts(library: NativeLibrary) -> None:
    """A norm, an MLP's two products and the quantisation between them; numbers that are rounded are rounded once."""
    x = torch.stack([_pattern(shift, -127, 127) for shift in range(3)]).float()
    normed = x * (x.double().square().mean(dim=1, keepdim=True) + 1.0).sqrt().reciprocal().float() * 2.0
    norm_weight = torch.full((_COLUMNS,), 2.0)
    into, out = (torch.stack([_pattern(shift, -128, 127) for shift in range(start, start + _COLUMNS)]) for start in (0, 3))
    ones = torch.ones(_COLUMNS, 1)
    up, down = (tile_weight(codes, 8, _COLUMNS, ones, None, None, False, library.instruction_set) for codes in (into, out))
    hidden = _quantised_products(normed, into).clamp_(min=0.0)
    got = torch.full((3, _COLUMNS), torch.nan)
    normed_by = (3, norm_weight.data_ptr(), 1.0)
    rest = (_RELU, None, got.data_ptr(), 0, torch.get_num_threads())
    library.function("triserve_int_linear_of", INT_LINEAR_OF)(x.data_ptr(), *normed_by, up.native, *rest)
    _require("int_linear_of", got, hidden)
    library.function("triserve_int_mlp", INT_MLP)(x.data_ptr(), *normed_by, None, up.native, down.native, *rest)
    _require("int_mlp", got, _quantised_products(hidden, out))
    library.function("triserve_int_mlp", INT_MLP)(x.data_ptr(), *normed_by, up.native, up.native, down.native, *rest)
    _require("int_mlp with a gate", got, _quantised_products(hidden * hidden, out))


def _quantised_products(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    scales = x.abs().amax(dim=1, keepdim=True) / 127.0
    codes = (x / scales).round().to(torch.int8)
    return expected_products(codes, weight, _COLUMNS, torch.ones(len(weight), 1), None) * scales


def _require(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.equal(got, expected):
        raise KnownAnswerError(f"{name} gives wrong answers")


_CHECKS: tuple[Callable[[NativeLibrary], None], ...] = (
    _check_threads,
    _check_quantise_rows,
    _check_int_linear,
    _check_float_linear,
    _check_layer_parts,
    _check_kv_write,
    check_attention,
    check_place_heads,
)
