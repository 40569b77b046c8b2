"""Bytes of a row on the wire from compute to a sampler, by kind of request: `python -m tests.bench.services.row_bytes`.

Real frames as the replica's link makes them, of steps in which every row is of the kind. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compute_svc.replica.outgoing_frames import OutgoingFrames
from compute_svc.wire.step_output import Rows
from tests.environment import describe_environment
from triserve.v1 import sampler_pb2

RESULTS = Path(__file__).parents[1] / "results" / "row_bytes.json"
# Tokens a row, and the likeliest reported with each; None = no log-probabilities. Whole rows go where the sampler draws, or checks.
KINDS: dict[str, tuple[int, int | None]] = {
    "drawn, greedy or sampled": (1, None),
    "drawn, 4 tokens a row": (4, None),
    "drawn, log-probability": (1, 0),
    "drawn, 5 likeliest": (1, 5),
    "drawn, 20 likeliest": (1, 20),
}
# What long-lived replicas count up to.
_FIRST_NUMBER = 1_000_000
_POSITION = 500


def _rows(count: int, width: int, num_tokens: int, top: int | None, *, whole: bool) -> Rows:
    random = np.random.default_rng(0)
    numbers = np.arange(_FIRST_NUMBER, _FIRST_NUMBER + count, dtype=np.uint64)
    tokens = random.integers(0, width, count * num_tokens).astype(np.uint32)
    logprobs = []
    if top is not None:
        logprobs = [
            sampler_pb2.RowLogprobs(
                row=row,
                logprob=random.random(num_tokens).tolist(),
                top_token=random.integers(0, width, num_tokens * top).tolist(),
                top_logprob=random.random(num_tokens * top).tolist(),
            )
            for row in range(count)
        ]
    logits = [sampler_pb2.RowLogits(row=row, logits=bytes(4 * width)) for row in range(count)] if whole else []
    return Rows(numbers, np.full(count, _POSITION, np.uint32), np.full(count, num_tokens, np.uint32), tokens, logprobs, logits)


def _bytes_per_row(rows: Rows) -> float:
    frames = OutgoingFrames()
    frames.add_rows(rows)
    total = 0
    for number in range(1, len(frames) + 1):
        total += frames.take(number).ByteSize()
    return round(total / len(rows.numbers), 1)


def main() -> None:
    """Prints the table and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--widths", type=int, nargs="+", default=[49152, 128256])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    table: list[dict[str, Any]] = []
    for width in arguments.widths:
        kinds = {name: (kind, False) for name, kind in KINDS.items()}
        kinds["whole row, the sampler draws"] = ((0, None), True)
        kinds["audited, drawn and whole"] = ((1, None), True)
        for name, ((num_tokens, top), whole) in kinds.items():
            sizes = {str(count): _bytes_per_row(_rows(count, width, num_tokens, top, whole=whole)) for count in arguments.rows}
            table.append({"kind": name, "logits_width": width, "bytes_per_row": sizes})
            print(table[-1])
    document = {"what": "bytes of a row from compute to a sampler", **describe_environment(torch.device("cpu")), "table": table}
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
