"""What it saves to take tokens without a choice many at a time: steps and seconds of answers whose names are long, with and without, in one process.

The same requests of a schema in which most of the text can but be what it is; each answer must be the same both ways. Writes a results file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from compute_svc.engine.engine import Engine
from compute_svc.engine.start.loading import load_engine
from compute_svc.settings import Settings
from compute_svc.wire.request import Request
from compute_svc.wire.step_output import StepOutput
from gateway.cli.hardware import describe_hardware
from gateway.cli.model_files.model_folder import download_from_hub, resolve_model
from sampler_svc.grammars import GrammarCompiler, GrammarState
from sampler_svc.text.vocabulary import Vocabulary, load_tokenizer
from triserve.rpc.sampling import Grammar, Sampling

RESULTS = Path(__file__).parents[1] / "results" / "forced_tokens.json"
_END = 2
_NAMES = ("customer_full_name", "shipping_address_line", "requested_delivery_date", "preferred_contact_method", "internal_reference_code")
GRAMMAR = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {name: {"enum": ["yes", "no", "unknown", None]} for name in _NAMES},
            "required": list(_NAMES),
            "additionalProperties": False,
        }
    ),
)


class Answers:
    """Requests in an engine, and their grammars beside it.

    Args:
        engine: empty.
        compiler: for the model's tokenizer.
        forces: whether masks say what follows without a choice.
    """

    def __init__(self, engine: Engine, compiler: GrammarCompiler, *, forces: bool) -> None:
        self._engine = engine
        self._compiler = compiler
        self._forces = forces
        self._states: dict[int, GrammarState] = {}
        self.tokens: dict[int, list[int]] = {}

    def run(self, prompts: Sequence[Sequence[int]], first: int) -> float:
        """Answers all; returns the seconds it took."""
        began = time.perf_counter()
        for number, prompt in enumerate(prompts, first):
            sampling = Sampling(temperature=1.0, seed=number - first, grammar=GRAMMAR)
            given = np.array(prompt, np.int64)
            request = Request(
                number, str(number), given, np.empty(0, np.int64), 200, 0.0, sampling=sampling, stop_token_ids=frozenset({_END})
            )
            self._engine.submit(request)
            self._states[number] = self._compiler.open(GRAMMAR, self._engine.logits_width, [_END], [])
            self.tokens[number] = []
            self._tell(number)
        while self._states:
            for output in (self._engine.draw_kept(), self._engine.step(0.0)):
                if output is not None:
                    self._take(output)
        return time.perf_counter() - began

    def _tell(self, number: int) -> None:
        state = self._states[number]
        forced = state.forced() if self._forces else ()
        self._engine.mask(number, len(self.tokens[number]), state.allowed(), forced)

    def _take(self, output: StepOutput) -> None:
        assert all(released.error is None for released in output.released), "no request fails"
        if output.rows is None:
            return
        tokens = output.rows.tokens.tolist()
        for number, count in zip(output.rows.numbers.tolist(), output.rows.counts.tolist(), strict=True):
            drawn, tokens = tokens[:count], tokens[count:]
            self.tokens[number] += drawn
            state = self._states[number]
            if drawn[-1] == _END or (state.advance(drawn) and state.is_over):
                self._engine.release(number)
                del self._states[number]
            else:
                self._tell(number)


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    folder = resolve_model(None, download_from_hub, os.environ).folder
    engine = load_engine(Settings(model=folder))
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    compiler = GrammarCompiler(folder / "tokenizer.json", Vocabulary(tokenizer))
    rounds: list[dict[str, Any]] = []
    first = 0
    for concurrency in arguments.concurrency:
        prompts = [[(7 * number + place) % 40_000 + 20 for place in range(24)] for number in range(concurrency)]
        for _ in range(arguments.rounds):
            row: dict[str, Any] = {"concurrency": concurrency}
            answers: dict[bool, list[list[int]]] = {}
            for forces in (False, True):
                one, steps = Answers(engine, compiler, forces=forces), engine.load.steps
                took_s = one.run(prompts, first)
                first += concurrency
                answers[forces] = list(one.tokens.values())
                row |= {
                    f"{'at_once' if forces else 'one_by_one'}_{what}": figure
                    for what, figure in (("s", round(took_s, 2)), ("steps", engine.load.steps - steps))
                }
            assert answers[False] == answers[True], "answers are the same both ways"
            row["tokens"] = sum(map(len, answers[True]))
            rounds.append(row)
            print(row, flush=True)
    document = {
        "what": "answers of a schema with long names: steps and seconds where tokens without a choice are taken at once, and one by one",
        "triserve": version("triserve"),
        "python": platform.python_version(),
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
