"""`python -m tests.bench.elastic.chain_compute` is what `python -m compute_svc` is, with a model that takes CHAIN_STEP_MS a step and no processor.

So it stands for a replica with a device of its own. Everything but the logits is the product's: scheduler, KV pages, drawing, frames.
"""

from __future__ import annotations

import os
import time

import numpy as np
import numpy.typing as npt
import torch

from compute_svc.engine.engine import Engine
from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch
from compute_svc.settings import Settings
from tests.bench.engine.fixed_step import engine_over, run_replica

_WIDTH = 4096
# The tiny model's special tokens are below.
_FIRST_PLAIN = 8
# Sums stay whole numbers in float32.
_MODULUS = 1 << 20


class ChainModel:
    """Implements the engine's `Model`: the likeliest next token follows from a sum over all tokens before it and their places.

    The sums are what it keeps as KV, so an answer is wrong from the first token that another request, place or page has got into.

    Args:
        step_s: Seconds from the beginning of a step until its logits are there.
    """

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def forward(self, batch: ForwardBatch, kv: KvPageStore) -> torch.Tensor:
        """See the engine's `Model`."""
        end = time.perf_counter() + self._step_s
        sums = self._sums(batch, kv)[batch.logit_rows.numpy()]
        next_tokens = _FIRST_PLAIN + (sums * 2654435761 >> 7) % (_WIDTH - _FIRST_PLAIN)
        logits = torch.zeros((len(next_tokens), _WIDTH))
        logits[torch.arange(len(next_tokens)), torch.from_numpy(next_tokens)] = 1.0
        time.sleep(max(0.0, end - time.perf_counter()))
        return logits

    def _sums(self, batch: ForwardBatch, kv: KvPageStore) -> npt.NDArray[np.int64]:
        """[T]: of each token and all before it in its request."""
        kept = kv.k(0)[0, :, :, 0].view(-1)
        starts = np.asarray(batch.query_starts)
        before = np.asarray(batch.kv_lengths) - np.diff(starts)
        last = np.maximum(before - 1, 0)
        pages = batch.page_table.numpy()[np.arange(len(before)), last // kv.page_size_tokens]
        earlier = kept[torch.from_numpy(pages * kv.page_size_tokens + last % kv.page_size_tokens)].numpy().astype(np.int64)
        earlier[before == 0] = 0
        sums: npt.NDArray[np.int64] = (batch.token_ids.numpy() * 40503 + batch.positions.numpy() * 10007) % _MODULUS
        for request in range(batch.num_requests):
            rows = slice(starts[request], starts[request + 1])
            sums[rows] = (np.cumsum(sums[rows]) + earlier[request]) % _MODULUS
        kept[batch.slots] = torch.from_numpy(sums).float()
        return sums


def _build(settings: Settings) -> Engine:
    torch.set_num_threads(1)
    return engine_over(ChainModel(float(os.environ["CHAIN_STEP_MS"]) / 1000), _WIDTH, max_running=settings.max_running_requests)


if __name__ == "__main__":
    run_replica("tests.bench.elastic.chain_compute", _build)
