"""Words that mean the contrary, on one side each."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_cache.semantic.parsing.items import Item, Question
from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS


def check(asked: Question, kept: Question) -> str | None:
    """Refuses "enable" against "disable", "before" against "after", wherever they stand."""
    if asked.language is None or asked.language != kept.language:
        return None
    opposites = LEXICONS[asked.language].opposites
    mine, theirs = _plain(asked.items), _plain(kept.items)
    for word in mine - theirs:
        contrary = opposites.get(word, frozenset()) & (theirs - mine)
        # A word both sides have, by a synonym, is no contrast.
        if contrary and not (opposites.get(word, frozenset()) & mine):
            return f"{word!r} against {min(contrary)!r}"
    return None


def _plain(items: Iterable[Item]) -> set[str]:
    return {
        form for item in items if item.kind in ("content", "preposition", "quantifier", "number") for form in item.forms if form[0] != "="
    }
