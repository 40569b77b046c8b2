"""Requests to measure with, made from a seed: lengths, token ids, arrivals. Pure standard library, the same wherever it is imported."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# Prompt and answer lengths of 1,024 conversations: two columns of numbers, each pair at most 1,024 tokens in prompt or answer.
BUNDLED_LENGTHS = Path(__file__).parent / "data" / "ppl_samples_1024_lengths.csv"
_HEADER = ["prompt_len", "output_len"]


class Lengths(NamedTuple):
    """Tokens of one request."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request, ready to be sent."""

    index: int
    # Seconds after the start of the run; 0 for all in a closed loop.
    arrival_s: float
    prompt_token_ids: list[int]
    # Tokens to generate, exactly.
    output_tokens: int


@dataclass(frozen=True, kw_only=True)
class WorkloadConfig:
    """What decides a workload, together with a file of lengths and a vocabulary.

    Raises:
        ValueError: a field is out of its range; names it.
    """

    num_requests: int
    seed: int = 0
    # Requests per second, with exponential gaps; None = closed loop, no arrivals.
    rate: float | None = None
    # Multiplies every length, before the caps.
    scale: float = 1.0
    # Caps on each request's tokens; None = none.
    max_prompt: int | None = None
    max_output: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_requests", "rate", "scale", "max_prompt", "max_output"):
            value = getattr(self, name)
            if value is not None and not (0 < value < math.inf):
                raise ValueError(f"{name} is {value}, it must be above 0")


def read_lengths(path: Path) -> list[Lengths]:
    """The lengths in a file of two columns, with or without the header `prompt_len,output_len`.

    Raises:
        ValueError: a line is not two whole numbers above 0; names the file and the line.
        OSError: the file cannot be read.
    """
    lengths = []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and row == _HEADER:
                continue
            try:
                prompt, output = (int(cell) for cell in row)
            except ValueError:
                raise ValueError(f"{path}:{number}: {','.join(row)!r} is not two whole numbers") from None
            if min(prompt, output) < 1:
                raise ValueError(f"{path}:{number}: a length is below 1")
            lengths.append(Lengths(prompt, output))
    if not lengths:
        raise ValueError(f"{path} has no lengths")
    return lengths


def make_workload(config: WorkloadConfig, lengths: Sequence[Lengths], *, vocab_size: int) -> list[PlannedRequest]:
    """The requests of a run. Depends on its arguments alone.

    Lengths are drawn without repetition as long as there are enough of them. Prompts are drawn evenly from all ids, so that no two
    share a beginning worth caching.

    Args:
        config: how many, how long, how often.
        lengths: to draw from; at least one.
        vocab_size: ids are below it.
    """
    # A stream of its own for each: the rate does not change the prompts, nor the vocabulary the lengths.
    drawn_lengths = random.Random(f"{config.seed} lengths")
    drawn_ids = random.Random(f"{config.seed} ids")
    drawn_gaps = random.Random(f"{config.seed} gaps")
    pool: list[Lengths] = []
    while len(pool) < config.num_requests:
        pool += drawn_lengths.sample(lengths, len(lengths))
    requests = []
    arrival_s = 0.0
    for index, chosen in enumerate(pool[: config.num_requests]):
        prompt = _scaled(chosen.prompt, config.scale, config.max_prompt)
        output = _scaled(chosen.output, config.scale, config.max_output)
        requests.append(PlannedRequest(index, arrival_s, drawn_ids.choices(range(vocab_size), k=prompt), output))
        if config.rate is not None:
            arrival_s += drawn_gaps.expovariate(config.rate)
    return requests


def _scaled(length: int, scale: float, cap: int | None) -> int:
    scaled = max(1, round(length * scale))
    return scaled if cap is None else min(scaled, cap)
