"""The tensors of the KV store."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compute_svc.kernels.kv_write import kv_write
from compute_svc.kv.kv_format import KV_FORMATS
from compute_svc.kv.page_store import KvPageStore
from tests.fakes.poisoned_kv import poison

CPU = torch.device("cpu")


def test_keys_and_values_are_views_of_one_layer() -> None:
    store = KvPageStore(3, 5, 16, 2, 8, torch.float32, CPU)

    store.k(1).fill_(1)
    store.v(1).fill_(2)

    assert store.k(1).shape == store.v(1).shape == (2, 5, 16, 8)
    assert torch.equal(store.kv(1).data, torch.cat((torch.ones(2, 5, 16, 8), torch.full((2, 5, 16, 8), 2.0))))
    assert not store.kv(0).data.any() and not store.kv(2).data.any()


def test_a_page_costs_its_keys_and_values_in_every_layer() -> None:
    assert KvPageStore(3, 5, 16, 2, 8, torch.float32, CPU).bytes_per_page == 3 * 2 * 16 * 2 * 8 * 4
    assert KvPageStore(3, 5, 16, 2, 8, torch.bfloat16, CPU).bytes_per_page == 3 * 2 * 16 * 2 * 8 * 2


@pytest.mark.parametrize("name", KV_FORMATS)
def test_a_page_costs_what_its_format_says(name: str) -> None:
    format_ = KV_FORMATS[name]
    for head_dim in (3, 8, 40, 64, 100):
        store = KvPageStore(3, 5, 16, 2, head_dim, format_.dtype, CPU, group=format_.group)
        assert store.bytes_per_page == 16 * format_.bytes_per_token(3, 2, head_dim)


@pytest.mark.parametrize(("name", "ratio"), [("int8-g8", 1.6), ("int8-g32", 1.882), ("int8-g64", 1.939), ("fp8-g64", 1.939)])
def test_codes_and_scales_take_so_much_less_than_bfloat16(name: str, ratio: float) -> None:
    assert KV_FORMATS["bfloat16"].bytes_per_token(30, 3, 64) / KV_FORMATS[name].bytes_per_token(30, 3, 64) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("name", KV_FORMATS)
def test_clearing_pages_zeroes_them_in_every_layer_and_no_others(name: str) -> None:
    format_ = KV_FORMATS[name]
    store = KvPageStore(2, 5, 4, 1, 3, format_.dtype, CPU, group=format_.group)
    poison(store)

    store.clear(torch.tensor([1, 4]))

    offsets = torch.arange(4)
    for layer in range(2):
        for page in range(5):
            numbers = store.kv(layer).read(torch.full((4,), page), offsets)
            assert not numbers.any() if page in (1, 4) else numbers.isnan().all()


@given(st.data())
def test_what_is_written_in_any_order_is_read_where_it_was_written_and_counted_as_finite_or_not(data: st.DataObject) -> None:
    format_ = KV_FORMATS[data.draw(st.sampled_from(sorted(KV_FORMATS)))]
    heads, head_dim, size, pages = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 5)), 6
    store = KvPageStore(2, pages, size, heads, head_dim, format_.dtype, CPU, group=format_.group)
    poison(store)
    expected = torch.full((2, 2 * heads, pages * size, head_dim), torch.nan)
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    for _ in range(data.draw(st.integers(1, 6))):
        slots = torch.randperm(pages * size, generator=random)[: data.draw(st.integers(1, pages * size))]
        rows = torch.randn((len(slots), 2 * heads, head_dim), generator=random).bfloat16()
        if data.draw(st.booleans()):
            rows[0, -1, -1] = torch.nan
        layer = data.draw(st.integers(0, 1))
        kv_write(store.kv(layer), slots, rows)
        alone = KvPageStore(1, 1, len(slots), heads, head_dim, format_.dtype, CPU, group=format_.group)
        kv_write(alone.kv(0), torch.arange(len(slots)), rows)
        expected[layer, :, slots] = alone.kv(0).read(torch.zeros_like(slots), torch.arange(len(slots)))
        if data.draw(st.booleans()):
            cleared = data.draw(st.integers(0, pages - 1))
            store.clear(torch.tensor([cleared]))
            expected[:, :, cleared * size : (cleared + 1) * size] = 0
    every = torch.arange(pages * size)
    read = torch.stack([store.kv(layer).read(every // size, every % size) for layer in range(2)])
    assert torch.equal(read.nan_to_num(1e30), expected.nan_to_num(1e30))
    is_finite = expected.view(2, 2 * heads, pages, -1).isfinite().all(-1).all(0).all(0).tolist()
    assert store.count_finite(np.arange(pages)) == (is_finite.index(False) if False in is_finite else pages)


@pytest.mark.parametrize(
    ("dtype", "group", "words"),
    [
        (torch.int8, None, "group is None and dtype torch.int8: codes are in groups"),
        (torch.float32, 8, "group is 8 and dtype torch.float32"),
        (torch.int8, 0, "group is 0, it must be at least 1"),
    ],
)
def test_codes_without_groups_and_groups_of_numbers_are_refused(dtype: torch.dtype, group: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KvPageStore(1, 1, 1, 1, 8, dtype, CPU, group=group)


@pytest.mark.parametrize("name", ["num_layers", "num_pages", "page_size_tokens", "num_kv_heads", "head_dim"])
def test_a_size_below_one_is_refused_by_name(name: str) -> None:
    sizes = {"num_layers": 1, "num_pages": 1, "page_size_tokens": 1, "num_kv_heads": 1, "head_dim": 1, name: 0}

    with pytest.raises(ValueError, match=f"{name} is 0, it must be at least 1"):
        KvPageStore(**sizes, dtype=torch.float32, device=CPU)


def test_a_store_on_a_cpu_takes_no_memory_before_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident_bytes()
    store = KvPageStore(1, 4096, 16, 8, 64, torch.float32, CPU)
    assert store.num_pages * store.bytes_per_page == 1 << 28
    assert resident_bytes() - before < 1 << 26
    assert not store.kv(0).data[:, 4095].any()
