"""How much, how many, how often, and how sure: all, some, only, more, best, always; both or one of them."""

from __future__ import annotations

from collections import Counter

from prompt_cache.semantic.parsing.items import Question


def check(asked: Question, kept: Question) -> str | None:
    """Refuses unless both hold the same quantifiers and comparatives."""
    mine, theirs = _steering(asked), _steering(kept)
    if mine == theirs:
        return _joining(asked, kept)
    only_mine, only_theirs = sorted((mine - theirs).elements()), sorted((theirs - mine).elements())
    return f"{', '.join(only_mine) or 'nothing'} against {', '.join(only_theirs) or 'nothing'}"


def _joining(asked: Question, kept: Question) -> str | None:
    """ "And" in one and "or" in the other."""
    mine, theirs = ({form for item in question.of("conjunction") for form in item.forms} & {"and", "or"} for question in (asked, kept))
    return f"{min(mine)!r} against {min(theirs)!r}" if len(mine) == len(theirs) == 1 and mine != theirs else None


def _steering(question: Question) -> Counter[str]:
    return Counter("/".join(sorted(item.forms)) for item in question.of("quantifier"))
