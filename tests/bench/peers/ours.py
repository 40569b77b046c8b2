"""This engine, as a contender: in a process of its own, and through all services."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers.contender import THREADS, Figures, ServedLoad
from tests.bench.peers.load import measure_server
from tests.e2e.local_pipeline import Pipeline

ROOT = Path(__file__).parents[3]
QUANTISED = "quantised/"
# What `triserve quantize` is told, by name.
QUANTISATIONS = {
    "int8": ("--weights", "int8", "--head"),
    "int4": ("--weights", "int4", "--group", "32", "--activations", "int8", "--head"),
}
_GIVEN = re.compile(r"(?P<name>[^=]+)=(?P<folder>[^:]*)(?::(?P<settings>.*))?")


@dataclass(frozen=True)
class OurFormat:
    """One format.

    Args:
        format: Its name in tables.
        folder: The model's.
        settings: Variables of the environment, for all parts.
    """

    format: str
    folder: Path
    settings: Mapping[str, str]
    maker: str = "triserve"
    serves: bool = True

    def computed(self, seed: int) -> Figures:
        """See `Contender`."""
        figures: Figures = self._ask({"seed": seed})
        return figures

    def served(self, load: ServedLoad) -> Figures:
        """See `Contender`."""
        pipeline = Pipeline(["--model", str(self.folder)], environment=self._environment())
        pipeline.start()
        try:
            return measure_server(pipeline.url, self.folder.name, load, vocabulary_of(self.folder))
        finally:
            pipeline.stop()

    def answers(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        """See `Contender`."""
        found: list[list[int]] = self._ask({"prompts": prompts, "num_tokens": num_tokens})
        return found

    def _environment(self) -> dict[str, str]:
        paths = os.pathsep.join([str(ROOT), str(ROOT / "protos")])
        return {"PYTHONPATH": paths, "COMPUTE_THREADS": str(THREADS), **self.settings}

    def _ask(self, question: dict[str, Any]) -> Any:
        command = [sys.executable, "-m", "tests.bench.peers.engine_side", json.dumps(question)]
        environment = {**os.environ, **self._environment(), "COMPUTE_MODEL": str(self.folder)}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
        return json.loads(done.stdout)


def parse_format(text: str, default: Path) -> OurFormat:
    """A format as the command line has it: NAME=FOLDER[:SETTING=VALUE,...], an empty folder being the default.

    Raises:
        ValueError: It is something else, or there is no such folder.

    Effects: quantises the default into a folder beside llama.cpp's where that is asked for and not done.
    """
    found = _GIVEN.fullmatch(text)
    settings = [one.partition("=") for one in (found["settings"] or "").split(",") if one] if found else []
    if found is None or not all(name and equals for name, equals, _ in settings):
        raise ValueError(f"{text!r} is not NAME=FOLDER[:SETTING=VALUE,...], like bfloat16=:COMPUTE_DTYPE=bfloat16")
    folder = default
    if found["folder"].startswith(QUANTISED):
        folder = _quantised(default, found["folder"].removeprefix(QUANTISED))
    elif found["folder"]:
        folder = Path(found["folder"]).resolve()
    if not (folder / "config.json").is_file():
        raise ValueError(f"{text!r} names {folder}, which is no model's folder")
    return OurFormat(found["name"], folder, {name: value for name, _, value in settings})


def _quantised(model: Path, name: str) -> Path:
    if name not in QUANTISATIONS:
        raise ValueError(f"{QUANTISED}{name} is none of {', '.join(QUANTISATIONS)}")
    folder = ROOT / ".peers" / f"{model.name}-{name}"
    if not folder.exists():
        command = [sys.executable, "-m", "gateway.cli", "quantize", str(model), str(folder), *QUANTISATIONS[name]]
        subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=True)
    return folder


def vocabulary_of(folder: Path) -> int:
    """How many ids a model has."""
    return int(json.loads((folder / "config.json").read_text())["vocab_size"])
