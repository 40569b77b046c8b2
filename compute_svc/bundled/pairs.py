"""The questions the bundled model answers, each with its answer, its wordings and the wordings kept back to measure it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

QUESTIONS_FOLDER = Path(__file__).parent / "questions"
_KEYS = {"answer", "questions", "held_out"}


class Pair(NamedTuple):
    """One answer and the ways to ask for it."""

    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]


def plain(question: str) -> str:
    """The words of a question without case and punctuation; questions of the same words count as the same."""
    return " ".join(re.findall(r"\w+", question.lower())) or question.strip()


def parse_pair(line: str, where: str) -> Pair:
    """Reads one line of a questions file.

    Raises:
        ValueError: the line is not an object of exactly the three keys; the message begins with `where`.
    """
    value = json.loads(line)
    if not isinstance(value, dict) or set(value) != _KEYS:
        raise ValueError(f"{where}: expected an object with the keys {sorted(_KEYS)}")
    return Pair(answer=value["answer"], questions=tuple(value["questions"]), held_out=tuple(value["held_out"]))


def load_pairs(folder: Path = QUESTIONS_FOLDER) -> list[Pair]:
    """Reads every `*.jsonl` of a folder, by file name and then by line."""
    return [
        parse_pair(line, f"{path.name}:{number}")
        for path in sorted(folder.glob("*.jsonl"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    ]


def foreign_answer(pairs: list[Pair]) -> str:
    """What to say to a question that no other answer covers: the answer of the pair that is asked `Something else entirely`.

    Raises:
        ValueError: no pair, or more than one, is asked that.
    """
    found = [pair.answer for pair in pairs if "Something else entirely" in pair.questions]
    if len(found) != 1:
        raise ValueError(f"one pair must be asked 'Something else entirely', {len(found)} are")
    return found[0]
