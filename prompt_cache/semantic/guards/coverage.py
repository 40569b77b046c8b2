"""Only languages the tables cover are compared by meaning."""

from __future__ import annotations

from prompt_cache.semantic.normalise import folded
from prompt_cache.semantic.parsing.items import Question


def check(asked: Question, kept: Question) -> str | None:
    """Refuses questions in two languages, and those in a language without tables unless only case, marks and spacing differ."""
    if asked.language is not None and asked.language == kept.language:
        return None
    if folded(asked.text) == folded(kept.text):
        return None
    if asked.language != kept.language:
        return f"languages {asked.language or 'unknown'} and {kept.language or 'unknown'}"
    return "the language is not covered and the texts are not equal"
