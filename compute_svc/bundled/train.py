"""Trains the bundled model from nothing and writes its folder: `python -m compute_svc.bundled.train --out FOLDER`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from compute_svc.bundled.batches import BatchMaker, Diet, Rows
from compute_svc.bundled.checkpoint import save_model
from compute_svc.bundled.corpus import stdlib_passages
from compute_svc.bundled.evaluate import share_said_word_for_word
from compute_svc.bundled.llama import Llama, LlamaShape
from compute_svc.bundled.pairs import Pair, foreign_answer, load_pairs
from compute_svc.bundled.train_tokenizer import VOCAB_SIZE, train_tokenizer

_LOGIT_ROWS_MULTIPLE = 256
_PROGRESS_FILE = "training_progress.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How the weights are found."""

    steps: int = 3000
    warmup_steps: int = 100
    peak_rate: float = 2e-3
    # The rate falls along a cosine to this share of its peak.
    last_rate_share: float = 0.01
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0
    dropout: float = 0.1
    seed: int = 20
    # Steps between two records of the progress.
    save_every: int = 100
    # bfloat16 matrix products; the weights stay float32.
    autocast: bool = True

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup_steps:
            return self.peak_rate * (step + 1) / self.warmup_steps
        part = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_rate * (self.last_rate_share + (1 - self.last_rate_share) * 0.5 * (1 + math.cos(math.pi * part)))


def make_optimiser(model: Llama, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that shrinks matrices and leaves norms alone."""
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    scales = [weight for weight in model.parameters() if weight.dim() != 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98), fused=True)


def loss_of(model: Llama, batch: list[Rows]) -> torch.Tensor:
    """Mean cross-entropy of the learnt tokens, by their weights.

    Logits are computed for those tokens and a few more, so that their number is one of few: each new size of a matrix
    product costs a compilation.
    """
    hidden = torch.cat([model.hidden(rows.token_ids, rows.positions, rows.mask)[0].flatten(0, 1) for rows in batch])
    weights = torch.cat([rows.weights.flatten() for rows in batch])
    targets = torch.cat([rows.targets.flatten() for rows in batch])
    padded = -(-int((weights > 0).sum()) // _LOGIT_ROWS_MULTIPLE) * _LOGIT_ROWS_MULTIPLE
    chosen = (weights > 0).to(torch.uint8).argsort(descending=True, stable=True)[:padded]
    losses = F.cross_entropy(model.logits(hidden[chosen]).float(), targets[chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


def train_step(model: Llama, optimiser: torch.optim.Optimizer, batch: list[Rows], *, step: int, recipe: Recipe) -> float:
    """Changes the weights once and returns the loss before. What is dropped out depends on the seed and the step alone."""
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(step)
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast):
        loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
    optimiser.step()
    return float(loss.detach())


def train(model: Llama, batches: BatchMaker, recipe: Recipe, progress: Path | None = None) -> Iterator[tuple[int, float]]:
    """Trains step by step, giving each step's number and loss.

    Args:
        progress: a file to go on from if it exists, written every `save_every` steps; going on gives what an unbroken run gives.
    """
    optimiser = make_optimiser(model, recipe)
    first = _load_progress(progress, model, optimiser) if progress and progress.exists() else 0
    for step in range(first, recipe.steps):
        yield step, train_step(model, optimiser, batches.batch(step), step=step, recipe=recipe)
        if progress and (step + 1) % recipe.save_every == 0:
            _save_progress(progress, model, optimiser, step + 1)


def _save_progress(path: Path, model: Llama, optimiser: torch.optim.AdamW, steps_done: int) -> None:
    tensors = {"steps_done": torch.tensor(steps_done)}
    for name, weight in model.named_parameters():
        state = optimiser.state[weight]
        tensors |= {f"weight/{name}": weight.detach(), f"mean/{name}": state["exp_avg"], f"square/{name}": state["exp_avg_sq"]}
    unfinished = path.with_suffix(".part")
    save_file(tensors, str(unfinished))
    unfinished.replace(path)


def _load_progress(path: Path, model: Llama, optimiser: torch.optim.AdamW) -> int:
    tensors = load_file(str(path))
    steps_done = int(tensors["steps_done"])
    for name, weight in model.named_parameters():
        weight.data.copy_(tensors[f"weight/{name}"])
        optimiser.state[weight] = {
            "step": torch.tensor(float(steps_done)),
            "exp_avg": tensors[f"mean/{name}"],
            "exp_avg_sq": tensors[f"square/{name}"],
        }
    return steps_done


def make_tokenizer(pairs: list[Pair], prose: list[str]) -> Tokenizer:
    """The tokenizer for these texts; questions held out of training are not among them."""
    return train_tokenizer(prose, [text for pair in pairs for text in (pair.answer, *pair.questions)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m compute_svc.bundled.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="steps of training (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the progress a broken run left in the folder")
    arguments = parser.parse_args()
    for name in ("steps", "threads"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} is {getattr(arguments, name)}, the least is 1")
    return arguments


def main() -> None:
    """Prepares the data, trains, reports as it goes and writes the folder."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    recipe = Recipe(steps=arguments.steps)
    pairs, prose = load_pairs(), stdlib_passages()
    tokenizer = make_tokenizer(pairs, prose)
    model = Llama(LlamaShape(vocab_size=VOCAB_SIZE), dropout=recipe.dropout)
    model.initialise(recipe.seed)
    batches = BatchMaker(tokenizer=tokenizer, pairs=pairs, foreign_answer=foreign_answer(pairs), prose=prose, seed=recipe.seed, diet=Diet())
    num_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{num_weights:,} weights, {len(pairs)} answers, {batches.num_turns} questions, {len(prose)} passages of prose", flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    progress = arguments.out / _PROGRESS_FILE
    if not arguments.resume:
        progress.unlink(missing_ok=True)
    first, started, recent = -1, time.monotonic(), 0.0
    for step, loss in train(model, batches, recipe, progress):
        if first < 0:
            first, recent = step, loss
        recent += 0.05 * (loss - recent)
        done = step + 1
        if done % 20 == 0 or done == recipe.steps:
            remaining_s = (time.monotonic() - started) / (done - first) * (recipe.steps - done)
            print(
                f"step {done}/{recipe.steps}  loss {recent:.3f}  rate {recipe.rate(step):.1e}  {remaining_s / 60:.1f} min left", flush=True
            )
        if done % 250 == 0 or done == recipe.steps:
            share = share_said_word_for_word(model, tokenizer, [(q, pair.answer) for pair in pairs for q in pair.held_out])
            print(f"step {done}: {share:.1%} of held-out questions answered word for word", flush=True)
            save_model(arguments.out, model, tokenizer)
    progress.unlink(missing_ok=True)
    print(f"wrote {arguments.out} with Python {sys.version.split()[0]} and torch {torch.__version__}", flush=True)


if __name__ == "__main__":
    main()
