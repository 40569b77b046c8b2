"""Brings English questions that say one thing in two kinds of clauses to one: conditions, what something has, what one does."""

from __future__ import annotations

from collections.abc import Sequence

from prompt_cache.semantic.parsing.items import Item

_IF = Item("conjunction", frozenset({"if", "when"}), "if")
_OF = Item("preposition", frozenset({"of"}), "of")
_IN = Item("preposition", frozenset({"in"}), "in")
_BE = Item("auxiliary", frozenset({"be", "present"}), "is")
# Behind these "when" asks for a time: "who decides when it begins".
_KNOWING_WORDS = """
know tell find see check say show explain remember decide choose determine calculate predict understand learn ask guess specify state
mention forget recall wonder control influence affect matter depend know care set change pick figure define remind notify hear discover
"""
_KNOWING = frozenset(_KNOWING_WORDS.split())
_HAVING = frozenset({"have", "has", "contain"})
_TEMPORAL = frozenset({"since", "after", "before", "during"})
_SUBJECTS = frozenset({"i", "we", "you"})


def with_conditions(items: Sequence[Item]) -> list[Item]:
    """Reads "when" as "if" where it says on what occasion, and "my phone is wet. What now?" as "what now if my phone is wet"."""
    result: list[Item] = []
    asks = any(item.kind == "wh" for item in items)
    start = 0
    for place in range(len(items) + 1):
        if place == len(items) or (items[place].kind == "pause" and "stop" in items[place].forms):
            sentence = items[start:place]
            subject = _subject_of_statement(sentence) if asks else None
            result += _with_occasions(sentence) if subject is None else [*sentence[:subject], _IF, *sentence[subject:]]
            result += items[place : place + 1]
            start = place + 1
    return result


def _subject_of_statement(sentence: Sequence[Item]) -> int | None:
    """Where the subject of a sentence that asks for nothing stands; None if it asks for something, or may."""
    if not sentence or any(item.kind == "wh" for item in sentence):
        return None
    if sentence[0].kind == "preposition" and not _TEMPORAL.isdisjoint(sentence[0].forms):
        # "Since the update my watch ...".
        return next((place for place, item in enumerate(sentence) if place > 1 and item.kind == "person"), None)
    has_verb = any(item.kind in ("auxiliary", "modal") for item in sentence[1:])
    return 0 if sentence[0].kind == "person" or (sentence[0].kind in ("content", "number") and has_verb) else None


def _with_occasions(sentence: Sequence[Item]) -> list[Item]:
    """A sentence in which "when" asks only where it is the first question word and no clause that could stand behind."""
    result = list(sentence)
    asking = [place for place, item in enumerate(sentence) if item.kind == "wh"]
    for number, place in enumerate(asking):
        if "when" not in sentence[place].forms or sentence[place].surface != "when":
            continue
        if number == 0:
            is_occasion = place == 0 and len(asking) > 1 and any(item.kind == "pause" for item in sentence[: asking[1]])
        else:
            is_occasion = "yesno" not in sentence[asking[0]].forms and not _is_object(sentence, place)
        if is_occasion:
            result[place] = Item("conjunction", _IF.forms, sentence[place].surface)
    return result


def _is_object(sentence: Sequence[Item], place: int) -> bool:
    """Whether "when" at a place may be what a verb before it is about: "how do I know when"."""
    before = sentence[place - 1]
    if before.kind not in ("content", "number", "verbatim", "quantifier") or not _KNOWING.isdisjoint(before.forms):
        return True
    is_bare_verb = place > 1 and sentence[place - 2].kind in ("person", "auxiliary", "modal")
    return is_bare_verb and "how" in sentence[0].forms


def with_plain_clauses(items: Sequence[Item]) -> list[Item]:
    """Reads "what effects does it have" as "what are the effects of it", and "which papers do I need" as "what need papers"."""
    places = [place for place, item in enumerate(items) if item.kind == "wh"]
    if len(places) != 1 or items[places[0]].forms.isdisjoint(("what", "howmany", "howmuch")):
        return list(items)
    start = places[0] + 1
    do = start
    while do < len(items) and items[do].kind in ("content", "quantifier"):
        do += 1
    if do == start or do + 2 >= len(items) or items[do].forms != {"do", "present"}:
        return list(items)
    wh, thing, rest = items[places[0]], items[start:do], items[do + 1 :]
    if rest[0].kind == "person" and rest[0].surface.casefold() in _SUBJECTS and rest[1].kind == "content":
        return [*items[:start], items[do], *rest[:2], *thing, *rest[2:]]
    owner = 0
    while owner < len(rest) and rest[owner].kind in ("content", "number") and rest[owner].surface.casefold() not in _HAVING:
        owner += 1
    if not owner or owner == len(rest) or rest[owner].surface.casefold() not in _HAVING:
        return list(items)
    if owner + 1 < len(rest) and rest[owner + 1].kind not in ("pause", "preposition", "conjunction"):
        return list(items)
    if not wh.forms.isdisjoint(("howmany", "howmuch")):
        return [*items[:start], *thing, _BE, _IN, *rest[:owner], *rest[owner + 1 :]]
    if rest[owner].surface.casefold() == "contain":
        return list(items)
    return [*items[:start], _BE, *thing, _OF, *rest[:owner], *rest[owner + 1 :]]
