"""How much, how many, how often, and how sure: all, some, only, more, best, always."""

from __future__ import annotations

from collections import Counter

from prompt_cache.semantic.guards.items import Question


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless both hold the same quantifiers and comparatives."""
    mine, theirs = _steering(asked), _steering(kept)
    if mine == theirs:
        return None
    only_mine, only_theirs = sorted((mine - theirs).elements()), sorted((theirs - mine).elements())
    return f"{', '.join(only_mine) or 'nothing'} against {', '.join(only_theirs) or 'nothing'}"


def _steering(question: Question) -> Counter[str]:
    return Counter("/".join(sorted(item.forms)) for item in question.of("quantifier"))
