"""What a script here reads and prints, JSON both; it runs in the environment of requirements.txt.

Task: {"vectors": {text: [float]}, "kept": [text], "asked": [text], "settings": [{name: value}]}. Answer: {"version": str, "settings":
[{"setting": {}, "served": [index in kept, or null, for each question asked]}]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Protocol

Vectors = Mapping[str, Sequence[float]]


class Ask(Protocol):
    """Fills a new cache with texts and their answers, and asks it."""

    def __call__(self, vectors: Vectors, answers: Mapping[str, str], asked: Sequence[str], **setting: float) -> list[str | None]:
        """The answer to each question asked; None = a miss."""


def answer_task(package: str, ask: Ask) -> None:
    """Reads a task, asks once for each of its settings, prints the answers.

    Args:
        package: Whose version is told.
    """
    task: dict[str, Any] = json.load(sys.stdin)
    # Which entry was served shows in what it answers.
    answers = {text: str(index) for index, text in enumerate(task["kept"])}
    settings = []
    for setting in task["settings"]:
        served = ask(task["vectors"], answers, task["asked"], **setting)
        settings.append({"setting": setting, "served": [None if name is None else int(name) for name in served]})
    sys.stdout.write(json.dumps({"version": version(package), "settings": settings}) + "\n")
