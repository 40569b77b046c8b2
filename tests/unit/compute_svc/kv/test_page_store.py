"""The tensors of the KV store."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from compute_svc.kv.page_store import KvPageStore

CPU = torch.device("cpu")


def test_keys_and_values_are_views_of_one_layer() -> None:
    store = KvPageStore(3, 5, 16, 2, 8, torch.float32, CPU)

    store.k(1).fill_(1)
    store.v(1).fill_(2)

    assert store.k(1).shape == store.v(1).shape == (2, 5, 16, 8)
    assert torch.equal(store.kv(1), torch.cat((torch.ones(2, 5, 16, 8), torch.full((2, 5, 16, 8), 2.0))))
    assert not store.kv(0).any() and not store.kv(2).any()


def test_a_page_costs_its_keys_and_values_in_every_layer() -> None:
    assert KvPageStore(3, 5, 16, 2, 8, torch.float32, CPU).bytes_per_page == 3 * 2 * 16 * 2 * 8 * 4
    assert KvPageStore(3, 5, 16, 2, 8, torch.bfloat16, CPU).bytes_per_page == 3 * 2 * 16 * 2 * 8 * 2


def test_clearing_pages_zeroes_them_in_every_layer_and_no_others() -> None:
    store = KvPageStore(2, 5, 4, 1, 3, torch.float32, CPU)
    for layer in range(2):
        store.kv(layer).fill_(torch.nan)

    store.clear(torch.tensor([1, 4]))

    for layer in range(2):
        assert not store.kv(layer)[:, [1, 4]].any()
        assert store.kv(layer)[:, [0, 2, 3]].isnan().all()


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
    assert not store.kv(0)[:, 4095].any()
