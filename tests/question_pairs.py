"""Pairs of questions that one answer serves, or only seems to: what a semantic cache is tuned with and judged by.

Written by hand for this project. The near misses are those a cache must not serve: similar words, another answer. `tuning` is for choosing
thresholds and writing guards; `held_out` is only measured with, or its figures say nothing about questions nobody has seen. `tuning_more`
was written later, about the kinds in which guards fitted to `tuning` generalise least, and is for writing guards too. `fresh` is only
measured with: in other domains, by somebody who had not read the guards, and not to be opened by those who write them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

_FOLDER = Path(__file__).parent / "data/question_pairs"

Half = Literal["tuning", "held_out"]
HALVES: tuple[Half, ...] = ("tuning", "held_out")
PairFile = Literal["tuning", "tuning_more", "held_out", "fresh"]
FITTED: tuple[PairFile, ...] = ("tuning", "tuning_more")
MEASURED: tuple[PairFile, ...] = ("held_out", "fresh")


@dataclass(frozen=True, kw_only=True)
class QuestionPair:
    """Two questions.

    Attributes:
        id: Unique in all files.
        language: "en", "zh", "de" or "es".
        kind: In what they differ: of wording for paraphrases ("voice", "synonyms", ...), of meaning for near misses ("negation", ...).
        first: The question that is in the cache.
        second: The question that is asked.
        same: Whether the answer to the first serves the second.
    """

    id: int
    language: str
    kind: str
    first: str
    second: str
    same: bool


def read_pairs(file: PairFile) -> list[QuestionPair]:
    """The pairs of a file, in the order of their ids."""
    return [QuestionPair(**json.loads(line)) for line in (_FOLDER / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
