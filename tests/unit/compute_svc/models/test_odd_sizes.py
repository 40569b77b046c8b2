"""The same bytes whatever the sizes of a model: narrow heads, odd widths, groups and vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compute_svc.models.registry import load_model
from tests.fakes.checkpoints import save_checkpoint
from tests.fakes.forward_driver import ForwardDriver

LENGTHS = [1, 15, 16, 17, 63, 128, 129, 200, 37]


def _grouped(heads: int, kv_heads: int, head_dim: int, **sizes: int) -> dict[str, Any]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_size": heads * head_dim, **sizes}


MODELS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "3 heads of 10": ("llama", torch.float32, _grouped(3, 3, 10)),
    "4 heads of 10": ("llama", torch.float32, _grouped(4, 4, 10)),
    "4 heads of 6 for one": ("llama", torch.float32, _grouped(4, 1, 6, intermediate_size=37, vocab_size=101)),
    "3 heads of 10 for one, bfloat16": ("qwen2", torch.bfloat16, _grouped(9, 3, 10, intermediate_size=41, vocab_size=103)),
    "2 heads of 14 for one, normalised": ("qwen3", torch.float32, _grouped(4, 2, 14, intermediate_size=1, vocab_size=99)),
    "odd experts": ("qwen2_moe", torch.float32, _grouped(3, 3, 10, moe_intermediate_size=7, shared_expert_intermediate_size=9)),
    "few experts, caps": ("mixtral", torch.float32, _grouped(3, 1, 18, intermediate_size=19, num_local_experts=3)),
    "heads of 7, learnt positions": ("gpt2", torch.float32, {"n_embd": 21, "n_head": 3, "n_inner": 11, "vocab_size": 101}),
    "heads of 9, slopes": ("bloom", torch.float32, {"hidden_size": 36, "n_head": 4, "vocab_size": 131}),
    "heads of 5, bfloat16": (
        "opt",
        torch.bfloat16,
        {"hidden_size": 15, "num_attention_heads": 3, "ffn_dim": 23, "word_embed_proj_dim": 15},
    ),
    "heads of 11, slopes": ("mpt", torch.float32, {"d_model": 44, "n_heads": 4, "vocab_size": 109}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_nine_decodes_together_are_nine_prompts_alone(name: str, tmp_path: Path) -> None:
    family, dtype, sizes = MODELS[name]
    save_checkpoint(tmp_path, family, **sizes)
    model = load_model(tmp_path, dtype=dtype, device=torch.device("cpu"))
    driver = ForwardDriver(model, num_pages=100)
    tokens = [[(seed * 31 + place * 7) % 97 for place in range(length + 2)] for seed, length in enumerate(LENGTHS)]
    requests = [driver.request(ids, len(ids)) for ids in tokens]
    driver.step([], list(zip(requests, LENGTHS, strict=True)))
    for _ in range(2):
        driver.step(requests, [])

    for request in requests:
        alone = ForwardDriver(model, num_pages=20)
        whole = alone.request(request.tokens, len(request.tokens))
        logits = alone.step([], [(whole, len(request.tokens))], all_logits=True)
        assert torch.equal(torch.cat(request.logits), logits[-3:])
        assert torch.equal(driver.stored(request), alone.stored(whole))
