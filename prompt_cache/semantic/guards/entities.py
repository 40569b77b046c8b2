"""Names: people, places, products, acronyms, quotations."""

from __future__ import annotations

import re
from collections import Counter

from prompt_cache.semantic.parsing.items import Item, Question, unmatched
from prompt_cache.semantic.parsing.tables.english_phrases import ENGLISH_HOMOGRAPHS

_QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|「([^」]+)」|『([^』]+)』|《([^》]+)》|(?<!\w)['‘]([^'’]+)['’](?!\w)")


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless each name and quotation of one is in the other; a name has aliases, and no synonyms."""
    for one, other in ((asked, kept), (kept, asked)):
        for quotation in quotations(one.text):
            if quotation not in other.text:
                return f"{quotation!r} in one alone"
        everything = other.of("content")
        for item in unmatched([item for item in one.of("content") if item.is_name], everything):
            return f"the name {item.surface!r} in one alone"
        for item in one.of("content"):
            if item.is_name and _is_other_word(item, everything):
                return f"{item.surface!r} is a name in one alone"
    if _counts(asked) != _counts(kept):
        return "a name stands more often in one"
    return None


def quotations(text: str) -> list[str]:
    """What stands between quotation marks."""
    return [part for match in _QUOTED.finditer(text) for part in match.groups() if part]


def _is_other_word(name: Item, others: list[Item]) -> bool:
    """Whether only a common word of the same letters corresponds: "Polish", "polish"."""
    if name.surface.casefold() not in ENGLISH_HOMOGRAPHS:
        return False
    return not any(other.corresponds(name) and (other.is_name or other.starts_sentence) for other in others)


def _counts(question: Question) -> Counter[str]:
    """How often each name stands that stands more than once."""
    counts = Counter(item.surface.casefold() for item in question.of("content") if item.is_name)
    return Counter({name: count for name, count in counts.items() if count > 1})
