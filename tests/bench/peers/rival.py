"""transformers as a contender, and as the reference for everybody's answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers.contender import THREADS, Figures, ServedLoad

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class TransformersFormat:
    """Static batches of one format.

    Args:
        format: float32 or bfloat16.
        folder: The model's.
    """

    format: str
    folder: Path
    maker: str = "transformers"
    serves: bool = False

    def computed(self, seed: int) -> Figures:
        """See `Contender`."""
        figures: Figures = self._ask({"seed": seed})
        return figures

    def served(self, load: ServedLoad) -> Figures:
        """See `Contender`."""
        raise NotImplementedError("a static batch is no server")

    def answers(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """See `Contender`."""
        found: list[list[int]] = self._ask({"prompts": prompts, "num_tokens": num_tokens, "answers": {}})["answers"]
        return found

    def judge(self, prompts: Sequence[Sequence[int]], answers: Mapping[str, list[list[int]]], num_tokens: int) -> dict[str, dict[str, Any]]:
        """Everybody's answers, by name, beside its own: the fields of `Judged`."""
        judged: dict[str, dict[str, Any]] = self._ask({"prompts": prompts, "num_tokens": num_tokens, "answers": answers})["judged"]
        return judged

    def _ask(self, question: dict[str, Any]) -> Any:
        command = [sys.executable, "-m", "tests.bench.peers.transformers_side"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")])}
        given = json.dumps({"model": str(self.folder), "dtype": self.format, "threads": THREADS, **question})
        done = subprocess.run(command, cwd=ROOT, env=environment, input=given, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)
