"""KV that is poison until it is written."""

from __future__ import annotations

import torch

from compute_svc.kv.page_store import KvPageStore


def poison(kv: KvPageStore) -> None:
    """Makes every number of a store NaN."""
    for index in range(kv.num_layers):
        layer = kv.kv(index)
        if layer.scales is None:
            layer.data.fill_(torch.nan)
        else:
            layer.data.view(torch.int8).fill_(55)
            layer.scales.fill_(torch.nan)
