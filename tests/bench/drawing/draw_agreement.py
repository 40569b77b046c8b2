"""Whether what compute draws on its device is what samplers draw: combinations of parameters, draws, disagreements.

Realistic rows of several widths; every draw has a seed and a history of its own, and half of the draws are the second of their request. Both
draw every row: the device in batches, the service row by row. Exits with 1 if they ever disagree. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compute_svc.drawing import Drawer, RequestDraw, RowStatus
from sampler_svc.drawing.changes import Changes
from sampler_svc.drawing.draw import draw_token
from tests.bench.drawing.draw_rows import COMBINATIONS, history, realistic_logits, sampling_of
from tests.environment import describe_environment
from tests.fakes.rows_to_draw import draw_rows, row_to_draw

RESULTS = Path(__file__).parents[1] / "results" / "draw_agreement.json"
_STEPS = 2
_HISTORY_TOKENS = 40
# Rows are made anew after so many batches: seeds and histories change with each.
_BATCHES_OF_ROWS = 8


def _compare(name: str, width: int, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    options = COMBINATIONS[name]
    random = np.random.default_rng([arguments.seed, width, list(COMBINATIONS).index(name)])
    drawer = Drawer(width, device)
    draws, disagreements, examples = 0, 0, []
    begin, batches = time.perf_counter(), 0
    while draws < arguments.draws:
        if batches % _BATCHES_OF_ROWS == 0:
            logits = realistic_logits(random, arguments.batch, width)
            on_device = torch.from_numpy(logits).to(device)
        batches += 1
        seeds = random.integers(0, 2**63, arguments.batch).tolist()
        samplings = [sampling_of(options, seed) for seed in seeds]
        tokens = [history(random, _HISTORY_TOKENS) for _ in seeds]
        prompts = [int(one) for one in random.integers(0, _HISTORY_TOKENS, arguments.batch)]
        requests = [
            RequestDraw(sampling, min_tokens=0, stop_token_ids=(), num_prompt=prompt, logits_width=width)
            for sampling, prompt in zip(samplings, prompts, strict=True)
        ]
        for _ in range(_STEPS):
            drawn = draw_rows(drawer, on_device, [row_to_draw(*one) for one in zip(requests, map(np.array, tokens), strict=True)])
            for row, (sampling, prompt, known) in enumerate(zip(samplings, prompts, tokens, strict=True)):
                changes = Changes(sampling, 0, (), known[:prompt], width)
                for token in known[prompt:]:
                    changes.count(token)
                expected = draw_token(logits[row], sampling, changes, len(known) - prompt)
                got = drawn.tokens[row] if drawn.status[row] is RowStatus.DRAWN else None
                draws += 1
                if got != expected:
                    disagreements += 1
                    examples.append({"seed": seeds[row], "position": len(known) - prompt, "device": got, "service": expected})
                known.append(got or 0)
        for request in requests:
            drawer.forget(request)
    result = {"combination": name, "logits_width": width, "draws": draws, "disagreements": disagreements}
    print(f"{result}, {1e6 * (time.perf_counter() - begin) / draws:.0f} us a draw", flush=True)
    return {**result, "examples": examples[:5]} if examples else result


def main() -> None:
    """Compares and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=256, help="of each combination at each width")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs="+", default=[4096, 49152, 128256])
    parser.add_argument("--combinations", nargs="+", default=list(COMBINATIONS), choices=list(COMBINATIONS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    with torch.inference_mode():
        rows = [_compare(name, width, arguments, device) for width in arguments.widths for name in arguments.combinations]
    disagreements = sum(row["disagreements"] for row in rows)
    document = {
        "what": "tokens drawn on the device and by the sampler from the same rows",
        "disagreements": disagreements,
        "draws": sum(row["draws"] for row in rows),
        **describe_environment(device),
        "settings": {name: value for name, value in vars(arguments).items() if name not in ("output", "combinations")},
        "combinations": {name: COMBINATIONS[name] for name in arguments.combinations},
        "table": rows,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{document['draws']} draws, {disagreements} disagreements")
    if disagreements:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
