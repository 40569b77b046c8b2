"""Rows of logits as language models give them, and combinations of parameters, for measurements of the draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from triserve.rpc.sampling import Sampling

PENALTIES: dict[str, Any] = {"repetition_penalty": 1.1, "presence_penalty": 0.25, "frequency_penalty": 0.25}
EVERYTHING: dict[str, Any] = {
    "temperature": 0.75,
    "top_n_sigma": 4.0,
    "top_k": 200,
    "typical_p": 0.96875,
    "top_p": 0.9375,
    "min_p": 0.0078125,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.0625,
    **PENALTIES,
    "dry_multiplier": 0.75,
    "logit_bias_ids": (1, 2, 3),
    "logit_bias_values": (2.0, -2.0, 100.0),
    "banned_token_ids": (3, 4),
    "bad_words": ((5, 6), (7,)),
}
# Numbers that float32 has exactly, as parameters have after the wire.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy, penalties": {"temperature": 0.0, **PENALTIES},
    "temperature 1": {},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 2": {"temperature": 2.0},
    "min_p": {"min_p": 0.0625},
    "top_n_sigma": {"top_n_sigma": 1.5},
    "top_k 50": {"top_k": 50},
    "top_k 2000": {"top_k": 2000},
    "top_p 0.9": {"top_p": 0.8999999761581421},
    "top_p, temperature 0.5": {"temperature": 0.5, "top_p": 0.9375},
    "typical_p": {"typical_p": 0.9375},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.0625},
    "xtc, min_p": {"xtc_probability": 1.0, "xtc_threshold": 0.03125, "min_p": 0.015625},
    "top_k, top_p": {"top_k": 50, "top_p": 0.9375},
    "top_p, min_p": {"top_p": 0.96875, "min_p": 0.03125},
    "typical_p, top_p, xtc": {"typical_p": 0.96875, "top_p": 0.9375, "xtc_probability": 0.5, "xtc_threshold": 0.0625},
    "penalties": PENALTIES,
    "penalties, top_p": {**PENALTIES, "top_p": 0.9375},
    "dry": {"dry_multiplier": 0.75, "dry_allowed_length": 1},
    "bias, bans": {"logit_bias_ids": (1, 9), "logit_bias_values": (12.0, 10.0), "banned_token_ids": (1, 4), "bad_words": ((5, 6), (7,))},
    "allowed": {"allowed_token_ids": tuple(range(0, 2000, 7))},
    "everything": EVERYTHING,
}
_FEW_IDS = 12


def realistic_logits(random: np.random.Generator, rows: int, width: int) -> npt.NDArray[np.float32]:
    """[rows, width]: a bulk whose spread is 1 to 5, and, above it in three rows of four, some dozens of likely ids; equals among them."""
    logits = random.normal(0, 1, (rows, width)).astype(np.float32)
    for row in logits:
        row *= random.uniform(1, 5)
        if random.random() < 0.75:
            likely = random.integers(0, width, int(random.integers(1, 60)))
            row[likely] = row.max() + random.exponential(2.0, likely.size).astype(np.float32) - 2
        if random.random() < 0.25:
            # bfloat16 has 8 bits: many logits are equal.
            row.view(np.uint32)[:] &= np.uint32(0xFFFF0000)
    return logits


def sampling_of(options: dict[str, Any], seed: int) -> Sampling:
    """Parameters with a seed."""
    return Sampling(seed=seed, **options)


def history(random: np.random.Generator, length: int) -> list[int]:
    """Tokens that repeat each other."""
    return [int(one) for one in random.integers(0, _FEW_IDS, length)]
