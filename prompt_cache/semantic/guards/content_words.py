"""Every word that means something has its counterpart: one other word in the same sentence is another question."""

from __future__ import annotations

from prompt_cache.semantic.guards.misspellings import is_misspelt
from prompt_cache.semantic.parsing.items import Item, Question, unmatched, unpaired
from prompt_cache.semantic.parsing.tables.lexicons import LEXICONS

# Prepositions that say where or when; the others are told by what they stand before.
_TELLING_LIST = """
from into between before after during since until over under against through across per like behind outside off up down out away
near insteadof except including despite becauseof infrontof nextto by than about without
"""
_TELLING = frozenset(_TELLING_LIST.split())
_TELLING_CONJUNCTIONS = frozenset({"if", "unless", "although", "sothat", "but"})


def check(asked: Question, kept: Question) -> str | None:
    """Refuses when a word of one has neither the same base form nor a synonym in the other."""
    for one, other in ((asked, kept), (kept, asked)):
        counterparts = other.of("content", "verbatim")
        differs = unmatched(one.of("content"), counterparts)
        for item in differs:
            if not _is_misspelling(item, one, other):
                return f"{item.surface!r} in one alone"
        # What is said of a thing is told by how often it is named: "My car and my bike are old. What is the bike worth?"
        if not differs and (left := unpaired(one.of("content"), counterparts)):
            return f"{left[0].surface!r} more often in one"
        for item in unmatched(one.of("preposition", "conjunction"), other.of("preposition", "conjunction")):
            if (_TELLING | _TELLING_CONJUNCTIONS) & item.forms:
                return f"{item.surface!r} in one alone"
    return None


def _is_misspelling(item: Item, one: Question, other: Question) -> bool:
    if one.language != "en" or item.is_name:
        return False
    lexicon = LEXICONS["en"]
    return any(
        is_misspelt(item.surface.casefold(), word.surface.casefold(), lexicon)
        for word in unmatched(other.of("content"), one.of("content"))
        if not word.is_name
    )
