from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compute_svc.bundled.batches import Text, pack
from compute_svc.bundled.checkpoint import load_model, save_model
from compute_svc.bundled.llama import Llama, LlamaShape
from compute_svc.bundled.train_tokenizer import train_tokenizer

SHAPE = LlamaShape(vocab_size=300, hidden_size=48, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=16, mlp_size=40, max_positions=64)


@pytest.fixture(scope="module")
def model() -> Llama:
    model = Llama(SHAPE)
    model.initialise(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.dim() == 2 else 1.5)
    return model.eval()


def _logits(model: Llama, token_ids: torch.Tensor) -> torch.Tensor:
    hidden, _ = model.hidden(token_ids, torch.arange(token_ids.shape[1]).expand(token_ids.shape))
    return model.logits(hidden)


def test_a_saved_model_has_the_logits_of_transformers(model: Llama, tmp_path: Path) -> None:
    save_model(tmp_path, model, train_tokenizer(["a few words"], ["hi"]))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["torch_dtype"] == "bfloat16"
    mine, _ = load_model(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    token_ids = torch.randint(0, SHAPE.vocab_size, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(_logits(mine, token_ids), theirs(token_ids).logits, atol=1e-5, rtol=1e-5)


def test_generating_with_the_cache_gives_what_whole_passes_give(model: Llama) -> None:
    prompts = torch.randint(0, SHAPE.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))
    expected = prompts
    with torch.inference_mode():
        for _ in range(9):
            expected = torch.cat((expected, _logits(model, expected)[:, -1:].argmax(-1)), dim=1)
    assert model.generate(prompts, 9, stop_ids=[]) == expected[:, 7:].tolist()


def test_generating_stops_a_row_before_its_stop_id_and_goes_on_with_others(model: Llama) -> None:
    prompts = torch.randint(0, SHAPE.vocab_size, (3, 7), generator=torch.Generator().manual_seed(1))
    free = model.generate(prompts, 9, stop_ids=[])
    stop_id = free[0][4]
    stopped = model.generate(prompts, 9, stop_ids=[stop_id])
    assert stopped == [row[: row.index(stop_id)] if stop_id in row else row for row in free]


def test_a_packed_text_has_the_logits_it_has_alone(model: Llama) -> None:
    texts = [Text(list(range(start, start + size)), [1.0] * size) for start, size in ((5, 9), (40, 4), (90, 11))]
    rows = pack(texts, row_tokens=24)
    with torch.inference_mode():
        hidden, _ = model.hidden(rows.token_ids, rows.positions, rows.mask)
        for text in texts:
            row, column = (int(index) for index in (rows.token_ids == text.token_ids[0]).nonzero()[0])
            alone = _logits(model, torch.tensor([text.token_ids]))[0]
            torch.testing.assert_close(model.logits(hidden[row, column : column + len(text.token_ids)]), alone, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = Llama(SHAPE), Llama(SHAPE), Llama(SHAPE)
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        model.initialise(seed)
    weights = [model.model.embed_tokens.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
