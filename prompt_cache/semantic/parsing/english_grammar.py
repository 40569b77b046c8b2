"""Brings English questions that say one thing in two ways into one order of words: passive and active, "A of B" and "B's A"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prompt_cache.semantic.parsing.items import Item
from prompt_cache.semantic.parsing.tables.english_forms import is_participle

_NOMINAL = frozenset({"content", "number", "verbatim", "quantifier"})
_INSIDE_SUBJECT = _NOMINAL | {"preposition", "person", "negation"}


def with_main_verbs(items: Sequence[Item]) -> list[Item]:
    """Makes content of "do", "have" and "like" where they are the verb: "what does the heart do", "what does he like"."""
    result = list(items)
    for place, item in enumerate(result):
        before = {form for one in result[:place] for form in one.forms if one.kind in ("auxiliary", "modal")}
        if item.kind == "auxiliary" and "do" in item.forms and before and _ends_clause(result, place):
            result[place] = Item("content", frozenset({"do"}), item.surface)
        elif item.kind == "auxiliary" and "have" in item.forms and not _has_participle(result, place):
            result[place] = Item("content", frozenset({"have"}), item.surface)
        elif item.kind == "preposition" and "like" in item.forms and before & {"do", "would", "can", "should"}:
            result[place] = Item("content", frozenset({"like"}), item.surface)
        elif item.kind == "content" and item.surface.casefold() == "mean" and "do" in before:
            result[place] = replace(item, forms=item.forms | {"meaning"})
    return result


# Nouns that belong to something: "the formula for salt" is that of salt.
_RELATIONAL_WORDS = """
syntax abbreviation cause chemical definition formula price symbol synonym term word name equation explanation
"""
_RELATIONAL = frozenset(_RELATIONAL_WORDS.split())
# What is on something is about it: "an essay on war".
_WRITTEN = frozenset(
    {
        "poem",
        "haiku",
        "essay",
        "story",
        "article",
        "speech",
        "paragraph",
        "report",
        "lecture",
        "information",
        "advice",
        "joke",
        "limerick",
        "sonnet",
    }
)
# What is followed by another verb in -ing.
_BEFORE_DOING_WORDS = """
stop start begin keep avoid quit continue finish resume like enjoy recommend try consider prevent risk about mind hate suggest advise go cease practice
benefit advantage disadvantage drawback risk point worth danger cost reason experience problem trouble difference alternative
"""
_BEFORE_DOING = frozenset(_BEFORE_DOING_WORDS.split())
_TRANSLATING = frozenset({"translate", "convert", "translation", "conversion"})


def with_plain_prepositions(items: Sequence[Item]) -> list[Item]:
    """Reads prepositions that say the same behind some words as one: "the formula for" and "of", "translate into" and "to"."""
    result: list[Item] = []
    is_translating = False
    for place, item in enumerate(items):
        is_translating |= item.kind == "content" and not _TRANSLATING.isdisjoint(item.forms)
        if item.kind == "preposition":
            before = items[place - 1] if place else None
            if "for" in item.forms and before is not None and before.kind == "content" and not _RELATIONAL.isdisjoint(before.forms):
                item = replace(item, forms=frozenset({"of"}))
            elif "on" in item.forms and before is not None and before.kind == "content" and not _WRITTEN.isdisjoint(before.forms):
                item = replace(item, forms=frozenset({"about"}))
            elif "into" in item.forms and is_translating:
                item = replace(item, forms=frozenset({"to"}))
        elif item.surface.casefold() == "using" and place and _may_have_means(items[place - 1]):
            item = Item("preposition", frozenset({"with"}), item.surface)
        result.append(item)
    return result


def _may_have_means(item: Item) -> bool:
    """Whether "using" behind a word says by what means, and is not what is stopped or begun."""
    return item.kind in ("content", "number", "verbatim") and _BEFORE_DOING.isdisjoint(item.forms)


def _ends_clause(items: list[Item], place: int) -> bool:
    following = [item.kind for item in items[place + 1 : place + 3]]
    # "Without" is a negation and a preposition.
    return not following or following[0] in ("pause", "preposition", "conjunction", "wh") or following == ["negation", "preposition"]


def _has_participle(items: list[Item], place: int) -> bool:
    for item in items[place + 1 :]:
        if item.kind in ("pause", "conjunction", "wh"):
            return False
        if (item.kind == "auxiliary" and "be" in item.forms) or (
            item.kind == "content" and is_participle(item.surface.split()[0].casefold())
        ):
            return True
    return False


def without_genitives(items: Sequence[Item]) -> list[Item]:
    """Puts what stands after "of" before the word it belongs to."""
    result = list(items)
    for place in range(len(result) - 2, 0, -1):
        item = result[place]
        if item.kind != "preposition" or "of" not in item.forms or result[place - 1].kind not in ("content", "number"):
            continue
        end = place + 1
        while end < len(result) and (result[end].kind in _NOMINAL or (end == place + 1 and result[end].kind == "person")):
            end += 1
        if end > place + 1:
            result[place - 1 : end] = [*result[place + 1 : end], result[place - 1]]
    return [item for item in result if not (item.kind == "preposition" and "of" in item.forms)]


def as_active(items: Sequence[Item]) -> list[Item]:
    """Puts the parts of a passive clause into the order of an active one: who does it, the verb, what it is done to."""
    result = list(items)
    for place, item in enumerate(result):
        if item.kind == "auxiliary" and "be" in item.forms:
            changed = _verb_after_subject(result, place) or _verb_after_be(result, place)
            if changed is not None:
                return changed
    return result


def _verb_after_subject(items: list[Item], be: int) -> list[Item] | None:
    """ "Why was the bridge opened by the council": the subject stands between the auxiliary and the verb."""
    verb = be + 1
    while verb < len(items) and _may_stand_in_subject(items[verb]):
        if verb > be + 1 and _is_verb(items, verb):
            return _rebuilt(items, be + 1, verb)
        verb += 1
    return None


def _verb_after_be(items: list[Item], be: int) -> list[Item] | None:
    """ "How can the bridge be opened": the subject stands before the auxiliary."""
    if be + 1 >= len(items) or not _is_verb(items, be + 1):
        return None
    start = be
    while start and _may_stand_in_subject(items[start - 1]):
        start -= 1
    if start == be:
        return None
    without_be = items[:be] + items[be + 1 :]
    return _rebuilt(without_be, start, be)


def _may_stand_in_subject(item: Item) -> bool:
    return item.kind in _INSIDE_SUBJECT or not item.forms.isdisjoint(("and", "or"))


def _is_verb(items: list[Item], place: int) -> bool:
    item = items[place]
    if item.kind != "content" or item.is_name or not is_participle(item.surface.split()[0].casefold()):
        return False
    return _ends_clause(items, place)


def _rebuilt(items: list[Item], subject: int, verb: int) -> list[Item]:
    """Moves the verb before what it is done to, and who does it before the verb.

    Args:
        subject: Where the subject of the passive begins; it ends before the verb.
    """
    agent, rest = _agent(items[verb + 1 :])
    return [*items[:subject], *agent, replace(items[verb], is_past=False), *items[subject:verb], *rest]


def _agent(after: list[Item]) -> tuple[list[Item], list[Item]]:
    for place, item in enumerate(after):
        if item.kind in ("pause", "conjunction"):
            break
        if item.kind == "preposition" and "by" in item.forms:
            end = place + 1
            while end < len(after) and after[end].kind in _NOMINAL | {"person"}:
                end += 1
            return after[place + 1 : end], after[:place] + after[end:]
    return [], after
