"""A negation more or less turns the question round."""

from __future__ import annotations

from prompt_cache.semantic.parsing.items import Item, Question, unmatched

_PREFIXES = {
    "en": ("un", "in", "im", "il", "ir", "dis", "non", "de", "mis", "anti", "counter"),
    "de": ("un", "nicht", "ent", "miss", "des", "anti"),
    "es": ("des", "in", "im", "i", "no", "anti", "dis"),
}
_SUFFIXES = {"en": ("less", "free", "proof"), "de": ("los", "frei"), "es": ()}


def check(asked: Question, kept: Question) -> str | None:
    """Refuses when one denies more often than the other, by a word of its own or by part of a word ("safe", "unsafe")."""
    mine, theirs = asked.of("negation"), kept.of("negation")
    if len(mine) != len(theirs):
        longer = mine if len(mine) > len(theirs) else theirs
        return f"{longer[-1].surface!r} in one alone"
    if asked.language not in _PREFIXES:
        return None
    left, right = asked.of("content"), kept.of("content")
    for one in unmatched(left, right):
        for other in unmatched(right, left):
            if _denies(one, other, asked.language) or _denies(other, one, asked.language):
                return f"{one.surface!r} against {other.surface!r}"
    return None


def _denies(one: Item, other: Item, language: str) -> bool:
    plain = {form for form in other.forms if len(form) > 2 and not form.startswith("=")}
    return any(form in {prefix + base for base in plain for prefix in _PREFIXES[language]} for form in one.forms) or any(
        form in {base + suffix for base in plain for suffix in _SUFFIXES[language]} for form in one.forms
    )
