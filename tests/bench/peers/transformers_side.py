"""transformers in a process of its own: figures, answers, or how far others' answers are from the likeliest, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.bench.gpu.transformers_rival import TransformersRival, load_rival
from tests.bench.peers.contender import (
    CONTEXT_TOKENS,
    DECODE_SIZES,
    DECODE_STEPS,
    PREFILL_TOKENS,
    WARM_UP_STEPS,
    decode_column,
    prefill_column,
)

_CPU = torch.device("cpu")


class Judged(NamedTuple):
    """Some answers beside the reference's.

    Attributes:
        tokens: Of all answers.
        agreeing: Of those, before the first that differs from the reference's answer.
        farthest: How much lower at most the reference's logit of a token was than its highest, after the same tokens.
    """

    tokens: int
    agreeing: int
    farthest: float


def speeds(rival: TransformersRival, vocabulary: int, seed: int) -> dict[str, float]:
    """Tokens per second of prefill and of decode, static batches."""
    drawn = torch.Generator().manual_seed(seed)

    def prompts(number: int, length: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (number, length), generator=drawn)

    rival.prefill(prompts(1, PREFILL_TOKENS))
    figures = {prefill_column(): PREFILL_TOKENS / rival.prefill(prompts(1, PREFILL_TOKENS))}
    for size in DECODE_SIZES:
        figures[decode_column(size)] = size * DECODE_STEPS / rival.decode(prompts(size, CONTEXT_TOKENS), WARM_UP_STEPS, DECODE_STEPS)
    return figures


@torch.inference_mode()
def answers(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """Greedy tokens, one prompt after the other."""
    found = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        output = model.generate(given, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False)
        found.append(output[0, len(prompt) :].tolist())
    return found


def judge(rival: TransformersRival, prompts: Sequence[Sequence[int]], given: list[list[int]], reference: list[list[int]]) -> Judged:
    """Some answers beside the reference's."""
    agreeing, farthest = 0, 0.0
    for prompt, answer, right in zip(prompts, given, reference, strict=True):
        agreeing += next((place for place, pair in enumerate(zip(answer, right, strict=True)) if pair[0] != pair[1]), len(right))
        logits = rival.logits(torch.tensor([*prompt, *answer]))[len(prompt) - 1 : -1]
        taken = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        farthest = max(farthest, float((logits.max(dim=1).values - taken).max()))
    return Judged(sum(len(answer) for answer in given), agreeing, farthest)


def main() -> None:
    """Answers one question, given as JSON on standard input, on standard output."""
    question: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(question["threads"])
    model = load_rival(Path(question["model"]), getattr(torch, question["dtype"]), _CPU)
    rival = TransformersRival(model)
    if "seed" in question:
        json.dump(speeds(rival, model.config.vocab_size, question["seed"]), sys.stdout)
        return
    reference = answers(model, question["prompts"], question["num_tokens"])
    judged = {name: judge(rival, question["prompts"], given, reference)._asdict() for name, given in question["answers"].items()}
    json.dump({"answers": reference, "judged": judged}, sys.stdout)


if __name__ == "__main__":
    main()
