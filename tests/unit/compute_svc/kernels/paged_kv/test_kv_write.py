"""Codes written by the library of our own are those of torch's operations, bit for bit, with every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.cpu_features import InstructionSet
from compute_svc.kernels.kv_write import aten, kv_write, native
from compute_svc.kernels.native import NativeMode
from compute_svc.kernels.paged_kv.kv_layer import KvLayer
from tests.examples import examples
from tests.fakes.native_kernels import native_kernels
from tests.fakes.native_libraries import INSTRUCTION_SETS, native_libraries, native_library_for


def empty_layer(heads: int, slots: int, width: int, group: int) -> KvLayer:
    codes = torch.full((heads, 1, slots, width), 99, dtype=torch.int8)
    return KvLayer(codes, torch.full((heads, 1, slots, -(-width // group)), -1.0, dtype=torch.float16), group)


def assert_same_bytes(one: KvLayer, other: KvLayer) -> None:
    assert one.scales is not None and other.scales is not None
    assert torch.equal(one.data, other.data)
    # Not a number is one whatever its bits.
    assert torch.equal(one.scales.nan_to_num(-2.0), other.scales.nan_to_num(-2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@examples(60)
@given(data=st.data())
def test_every_instruction_set_writes_what_torchs_operations_write(
    instruction_set: InstructionSet, dtype: torch.dtype, data: st.DataObject
) -> None:
    library = native_library_for(instruction_set)
    tokens, heads, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 80))
    group = data.draw(st.sampled_from([8, 32, 64, 5]).map(lambda size: min(size, width)))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 10_000)))
    # Any exponents, and numbers at which something is rounded, is too large, or is none.
    wide = torch.randn((tokens, heads + 2, width), generator=random) * 10.0 ** data.draw(st.integers(-44, 37))
    special = torch.tensor(
        [0.0, -0.0, 2.0**-24, 1e-45, 127 * 65504.0, 3e38, math.inf, -math.inf, math.nan, 0.5, 2.5, 127.0, 65504.0, 2.0**-14]
    )
    for _ in range(data.draw(st.integers(0, 6))):
        place = tuple(int(torch.randint(0, size, (1,), generator=random)) for size in wide.shape)
        wide[place] = special[data.draw(st.integers(0, len(special) - 1))]
    rows = wide.to(dtype)[:, 2:]
    slots = torch.randperm(7, generator=random)[:tokens]
    written, expected = empty_layer(heads, 7, width, group), empty_layer(heads, 7, width, group)

    native.kv_write(written, slots, rows, library)

    aten.kv_write(expected, slots, rows)
    assert_same_bytes(written, expected)


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_many_rows_on_many_threads_are_the_same(instruction_set: InstructionSet) -> None:
    library = native_library_for(instruction_set)
    rows = torch.randn((300, 6, 64), generator=torch.Generator().manual_seed(0))
    slots = torch.randperm(400, generator=torch.Generator().manual_seed(1))[:300]
    written, expected = empty_layer(6, 400, 64, 32), empty_layer(6, 400, 64, 32)

    native.kv_write(written, slots, rows.transpose(1, 2).contiguous().transpose(1, 2), library)

    aten.kv_write(expected, slots, rows)
    assert_same_bytes(written, expected)


@pytest.mark.parametrize("slot", [7, -1, 1 << 40])
def test_a_slot_outside_the_store_is_refused_before_anything_is_written(slot: int) -> None:
    kv, untouched = empty_layer(2, 7, 8, 8), empty_layer(2, 7, 8, 8)
    with pytest.raises(IndexError):
        native.kv_write(kv, torch.tensor([0, slot]), torch.zeros((2, 2, 8)), native_libraries()[0])
    assert_same_bytes(kv, untouched)


def test_the_library_writes_codes_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(native, "kv_write", lambda *_: calls.append("native"))
    monkeypatch.setattr(aten, "kv_write", lambda *_: calls.append("aten"))
    modes: tuple[NativeMode, ...] = ("off", "required")
    for mode in modes:
        with native_kernels(mode):
            kv_write(empty_layer(2, 7, 8, 8), torch.tensor([0]), torch.zeros((1, 2, 8)))
            kv_write(KvLayer(torch.zeros((2, 1, 7, 8))), torch.tensor([0]), torch.zeros((1, 2, 8)))
    assert calls == ["aten", "aten", "native", "aten"]
