"""One forward pass before a model counts as loaded."""

from __future__ import annotations

import numpy as np
import torch

from compute_svc.kv.page_store import KvPageStore
from compute_svc.layers.forward_batch import ForwardBatch, begun_pages
from compute_svc.models.causal_lm import CausalLM
from compute_svc.models.weights import CheckpointError

_MOST_TOKENS = 4
_PAGE_SIZE_TOKENS = 16


def first_logits(model: CausalLM) -> torch.Tensor:
    """Logits of a few tokens, spread over the vocabulary; of ranks all must be asked, and the first one gets them."""
    config = model.config
    count = min(_MOST_TOKENS, config.max_position_embeddings)
    page_table = np.zeros((1, 1), dtype=np.int64)
    positions = torch.arange(count)
    batch = ForwardBatch(
        token_ids=torch.linspace(0, config.vocab_size - 1, count).long(),
        positions=positions,
        slots=positions,
        num_decodes=0,
        query_starts=(0, count),
        kv_lengths=(count,),
        page_table=torch.from_numpy(page_table),
        logit_rows=positions,
        begun_pages=torch.from_numpy(begun_pages(page_table, [count], [count], _PAGE_SIZE_TOKENS)),
        position_limit=count,
    )
    kv = KvPageStore(config.num_layers, 1, _PAGE_SIZE_TOKENS, config.num_kv_heads, config.kv_head_dim, model.dtype, model.device)
    return model.forward(batch, kv)


def require_finite_logits(model: CausalLM) -> None:
    """Computes a few tokens.

    Raises:
        CheckpointError: Their logits are not all finite.
    """
    if not first_logits(model).isfinite().all():
        config = model.config
        raise CheckpointError(
            f"{config.architecture}: logits of the first tokens are not finite, though all weights are: config.json does not fit the "
            f"weights, or {str(model.dtype).removeprefix('torch.')} is too narrow for them"
        )
