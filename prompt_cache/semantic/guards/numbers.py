"""Another number is another question."""

from __future__ import annotations

from collections import Counter

from prompt_cache.semantic.parsing.items import Question


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless both hold the same numbers as often: digits or words, ordinals, times, versions."""
    mine, theirs = _numbers(asked), _numbers(kept)
    if mine == theirs:
        return None
    only_mine, only_theirs = sorted((mine - theirs).elements()), sorted((theirs - mine).elements())
    return f"{', '.join(only_mine) or 'no number'} against {', '.join(only_theirs) or 'no number'}"


def _numbers(question: Question) -> Counter[str]:
    return Counter(form for item in question.of("number") for form in item.forms)
