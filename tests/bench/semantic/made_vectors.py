"""Vectors as those of questions, made up; numpy alone, so that the environments of rivals can import it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Cosine between a query and the entry that it paraphrases.
CLOSENESS = 0.9

Rows = npt.NDArray[np.float32]


def unit(rows: Rows) -> Rows:
    """The rows scaled to length 1."""
    scaled: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def clustered(entries: int, dimensions: int, seed: int) -> Rows:
    """Unit vectors, [entries, dimensions]: one to a hundred or so around each centre."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, entries // 50), dimensions), np.float32)
    rows = centres[random.integers(0, len(centres), entries)] + 0.6 * random.standard_normal((entries, dimensions), np.float32)
    return unit(rows)


def paraphrases(rows: Rows, count: int, seed: int) -> Rows:
    """Unit vectors, [count, dimensions], each near a row."""
    random = np.random.default_rng(seed)
    noise = random.standard_normal((count, rows.shape[1]), np.float32)
    near = CLOSENESS * rows[random.integers(0, len(rows), count)] + np.sqrt(1 - CLOSENESS**2) * unit(noise)
    return unit(near)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile."""
    return {"p50_ms": round(1e3 * statistics.median(seconds), 4), "p99_ms": round(1e3 * float(np.percentile(seconds, 99)), 4)}
