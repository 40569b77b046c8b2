"""What a semantic cache served for the pairs of a half, counted: true hits, false hits, precision, by language and by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_cache.semantic.budget import PUBLISHED_CONFIDENCE, upper_bound
from tests.question_pairs import QuestionPair

# Of each question asked, the index of the pair whose first question's answer was served; None = a miss.
Served = Sequence[int | None]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Counts.

    Attributes:
        paraphrases: Questions asked that the entry of their pair answers.
        near_misses: Questions asked that no entry answers.
        true_hits: Paraphrases that got the answer of their pair.
        false_hits: Near misses that got any answer.
        strays: Paraphrases that got the answer of another pair, which is as false.
    """

    paraphrases: int
    near_misses: int
    true_hits: int
    false_hits: int
    strays: int

    @property
    def true_hit_rate(self) -> float | None:
        """Share of the paraphrases that hit; None if there are none."""
        return self.true_hits / self.paraphrases if self.paraphrases else None

    @property
    def precision(self) -> float | None:
        """Share of the hits that are true; None if nothing hit."""
        hits = self.true_hits + self.false_hits + self.strays
        return self.true_hits / hits if hits else None

    @property
    def false_hit_bound(self) -> float:
        """What share of near misses is served wrongly at most, with 95 % confidence."""
        return upper_bound(self.false_hits, self.near_misses, PUBLISHED_CONFIDENCE)

    def as_json(self) -> dict[str, Any]:
        """Counts and shares."""
        shares = {name: getattr(self, name) for name in ("true_hit_rate", "precision", "false_hit_bound")}
        return {**vars(self), **{name: None if share is None else round(share, 4) for name, share in shares.items()}}


def score(pairs: Sequence[QuestionPair], served: Served) -> Score:
    """Counts one half: every first question is in one cache, every second one is asked."""
    return _score(list(zip(pairs, served, range(len(pairs)), strict=True)))


def scores_by_language(pairs: Sequence[QuestionPair], served: Served) -> dict[str, Score]:
    """Counts by language, and under "all"."""
    rows = list(zip(pairs, served, range(len(pairs)), strict=True))
    languages = sorted({pair.language for pair in pairs})
    return {"all": _score(rows)} | {language: _score([row for row in rows if row[0].language == language]) for language in languages}


def kinds_failed(pairs: Sequence[QuestionPair], served: Served) -> dict[str, dict[str, str]]:
    """Near misses that were served and paraphrases that were not, by kind, as "failed/all"."""

    def counts(same: bool, failed: Callable[[int], bool]) -> dict[str, str]:
        total = Counter(pair.kind for pair in pairs if pair.same is same)
        bad = Counter(pair.kind for index, pair in enumerate(pairs) if pair.same is same and failed(index))
        return {kind: f"{bad[kind]}/{total[kind]}" for kind in sorted(total)}

    return {
        "near misses served": counts(False, lambda index: served[index] is not None),
        "paraphrases missed": counts(True, lambda index: served[index] != index),
    }


def table(rows: Iterable[tuple[str, Sequence[str]]], headings: Sequence[str]) -> str:
    """Lines of a table: a name and its cells."""
    lines = [("", list(headings)), *((name, list(cells)) for name, cells in rows)]
    width = max(len(name) for name, _ in lines)
    widths = [max(len(cells[column]) for _, cells in lines) for column in range(len(headings))]
    return "\n".join(
        f"{name:<{width}}  " + "  ".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True)) for name, cells in lines
    )


def cells(counted: Score) -> list[str]:
    """A score as the cells under CELL_HEADINGS."""
    return [
        f"{counted.true_hits}/{counted.paraphrases}",
        _percent(counted.true_hit_rate),
        f"{counted.false_hits}/{counted.near_misses}",
        f"<= {100 * counted.false_hit_bound:.1f} %",
        str(counted.strays),
        _percent(counted.precision),
    ]


CELL_HEADINGS = ("true hits", "rate", "false hits", "of all", "strays", "precision")


def _score(rows: Sequence[tuple[QuestionPair, int | None, int]]) -> Score:
    return Score(
        paraphrases=sum(pair.same for pair, _, _ in rows),
        near_misses=sum(not pair.same for pair, _, _ in rows),
        true_hits=sum(pair.same and hit == index for pair, hit, index in rows),
        false_hits=sum(not pair.same and hit is not None for pair, hit, _ in rows),
        strays=sum(pair.same and hit is not None and hit != index for pair, hit, index in rows),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
