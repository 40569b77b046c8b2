from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compute_svc.bundled.batches import BatchMaker, Diet
from compute_svc.bundled.llama import Llama, LlamaShape
from compute_svc.bundled.pairs import Pair
from compute_svc.bundled.train import Recipe, train
from compute_svc.bundled.train_tokenizer import train_tokenizer

PAIRS = [Pair("It is a pipeline.", ("What is Triserve?", "define triserve"), ()), Pair("Hello!", ("hi", "hey"), ())]
PROSE = ["The quick brown fox jumps over the lazy dog while reading documentation about containers."] * 20
RECIPE = Recipe(steps=20, warmup_steps=2, peak_rate=1e-2)


@pytest.fixture(scope="module")
def batches() -> BatchMaker:
    tokenizer = train_tokenizer(PROSE, [text for pair in PAIRS for text in (pair.answer, *pair.questions)])
    diet = Diet(turns=4, prose_tokens=64, early_steps=0, row_widths=(64,))
    return BatchMaker(tokenizer=tokenizer, pairs=PAIRS, foreign_answer="I do not know.", prose=PROSE, seed=1, diet=diet)


def _model() -> Llama:
    model = Llama(
        LlamaShape(vocab_size=512, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, mlp_size=48), dropout=0.1
    )
    model.initialise(1)
    return model


def _losses(batches: BatchMaker, recipe: Recipe, progress: Path | None = None) -> list[float]:
    return [loss for _, loss in train(_model(), batches, recipe, progress)]


def test_twenty_steps_reduce_the_loss(batches: BatchMaker) -> None:
    losses = _losses(batches, RECIPE)
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_the_same_seed_gives_the_same_losses(batches: BatchMaker) -> None:
    recipe = Recipe(steps=4, warmup_steps=2)
    assert _losses(batches, recipe) == _losses(batches, recipe)


def test_another_seed_drops_other_activations(batches: BatchMaker) -> None:
    assert _losses(batches, Recipe(steps=2, seed=1)) != _losses(batches, Recipe(steps=2, seed=2))


def test_going_on_after_a_break_gives_what_an_unbroken_run_gives(batches: BatchMaker, tmp_path: Path) -> None:
    recipe = Recipe(steps=6, warmup_steps=2, save_every=3)
    unbroken = _losses(batches, recipe)
    progress = tmp_path / "progress.safetensors"
    broken: list[float] = []
    for step, loss in train(_model(), batches, recipe, progress):
        broken.append(loss)
        if step == 4:
            break
    rest = [(step, loss) for step, loss in train(_model(), batches, recipe, progress)]
    assert [step for step, _ in rest] == [3, 4, 5]
    assert broken[:3] + [loss for _, loss in rest] == unbroken


def test_the_rate_rises_falls_and_ends_low() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, peak_rate=1.0, last_rate_share=0.01)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0.01 <= rates[-1] < 0.02


def test_training_keeps_weights_in_float32(batches: BatchMaker) -> None:
    model = _model()
    for _ in train(model, batches, Recipe(steps=1)):
        pass
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
