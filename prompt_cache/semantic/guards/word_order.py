"""The same words in another order: who does what to whom, and from where to where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from prompt_cache.semantic.guards.complements import in_another_sequence, other_complement, with_conjuncts_of
from prompt_cache.semantic.parsing.english_grammar import without_genitives
from prompt_cache.semantic.parsing.items import Item, Question

_ORDERED = frozenset({"content", "number", "verbatim"})
_MARKERS = frozenset({"preposition", "conjunction"})
# What joins equals: their order says nothing.
_SYMMETRIC = frozenset({"and", "or", "versus"})
# Another of these before the same word asks for something else. Not all pairs that differ: "in Windows" is "on Windows".
_AT_ODDS = frozenset(
    frozenset(pair.split("-"))
    for pair in [
        "for-about",
        "for-with",
        "for-by",
        "for-from",
        "for-against",
        "about-by",
        "about-with",
        "with-by",
        "to-from",
        "to-in",
        "to-about",
        "to-with",
        "to-by",
        "from-with",
        "from-about",
        "from-by",
        "into-from",
        "over-under",
        "before-after",
        "before-during",
        "after-during",
        "until-since",
        "until-from",
        "since-before",
        "before-on",
        "after-on",
        "under-on",
    ]
)
# What is said of several alike, wherever it stands.
_SYMMETRIC_WORDS = frozenset({"difference", "similarity", "unterschied", "diferencia"})
# Measures: "how old is the universe" has the age before it, "the age of the universe" behind.
_MEASURES = frozenset(
    [
        "height",
        "depth",
        "width",
        "age",
        "size",
        "weight",
        "temperature",
        "speed",
        "price",
        "strength",
        "distance",
        "population",
        "meaning",
        "höhe",
        "größe",
        "alter",
        "preis",
        "altura",
        "precio",
    ]
)
# Words that may stand anywhere in their clause.
_FREE = ("ly", "mente")


class _Segment(NamedTuple):
    """Words that move together.

    Attributes:
        marker: The preposition or conjunction they follow, "" for the main clause.
        places: Numbers of the words, the same for words that correspond.
    """

    marker: str
    places: tuple[int, ...]


class _OpenSegment(NamedTuple):
    """A segment that is being read."""

    marker: str
    places: list[int]


def check(asked: Question, kept: Question) -> str | None:
    """Refuses the same words in other roles; phrases may move as a whole ("in Python, how do I ...")."""
    mine: Sequence[Item] = asked.items
    theirs: Sequence[Item] = kept.items
    if asked.language == "en" and _num_genitives(mine) != _num_genitives(theirs):
        mine, theirs = tuple(without_genitives(mine)), tuple(without_genitives(theirs))
    odd = other_complement(mine, theirs) or in_another_sequence(mine, theirs) if asked.language == "en" else None
    if odd is not None:
        return odd
    theirs = with_conjuncts_of(mine, theirs)
    first, second = _corresponding(mine, theirs)
    if asked.language == "de":
        _free_german_verbs(mine, first, theirs, second)
    _free_single_superlative(mine, first, theirs, second)
    if asked.language == "zh" and _is_topic_first(asked, second):
        return None
    odd = _prepositions_at_odds(mine, first, theirs, second, asked.language) or _steering_elsewhere(mine, first, theirs, second)
    if odd is not None:
        return odd
    order = [number for number in second if number is not None]
    if order == sorted(order):
        return None
    nouns_end_phrases = asked.language == "de"
    if Counter(_segments(mine, first, nouns_end_phrases)) == Counter(_segments(theirs, second, nouns_end_phrases)):
        return None
    words = {number: item.surface for item, number in zip(mine, first, strict=True) if number is not None}
    before, after = next(pair for pair in pairwise(order) if pair[0] > pair[1])
    return f"{words.get(after, '?')!r} and {words.get(before, '?')!r} change places"


def _num_genitives(items: Sequence[Item]) -> int:
    return sum(item.kind == "preposition" and "of" in item.forms for item in items)


def _corresponding(asked: Sequence[Item], kept: Sequence[Item]) -> tuple[list[int | None], list[int | None]]:
    """Numbers the words so that those that correspond have one number, and those without a counterpart none."""
    first: list[int | None] = [place if _counts(item) else None for place, item in enumerate(asked)]
    second: list[int | None] = [None] * len(kept)
    free = {place for place, number in enumerate(first) if number is not None}
    for place, item in enumerate(kept):
        if not _counts(item):
            continue
        same = sorted(number for number in free if item.corresponds(asked[number]))
        # The same spelling before a mere synonym.
        best = next((number for number in same if asked[number].surface.casefold() == item.surface.casefold()), same[0] if same else None)
        if best is not None:
            free.remove(best)
            second[place] = best
    for number in free:
        first[number] = None
    return first, second


def _counts(item: Item) -> bool:
    if item.kind == "person":
        return not item.forms.isdisjoint(("he", "she"))
    return item.kind in _ORDERED and not item.surface.casefold().endswith(_FREE) and not ((_SYMMETRIC_WORDS | _MEASURES) & item.forms)


def _free_single_superlative(asked: Sequence[Item], first: list[int | None], kept: Sequence[Item], second: list[int | None]) -> None:
    """Takes the only superlative out of the order where it stands once before what it tells and once behind.

    "What is the fastest animal" and "which animal is the fastest" ask for one; "the son of the tallest man" and "the tallest son of the man"
    do not.
    """
    places = [[place for place, item in enumerate(items) if _is_superlative(item)] for items in (asked, kept)]
    if any(len(found) != 1 for found in places):
        return
    told = [_told_by(items, numbers, found[0]) for (items, numbers), found in zip(((asked, first), (kept, second)), places, strict=True)]
    starts = [next((number for number in numbers if number is not None), None) for numbers in (first, second)]
    if (told[0] is None and told[1] is not None and told[1] == starts[0]) or (
        told[1] is None and told[0] is not None and told[0] == starts[1]
    ):
        first[places[0][0]] = second[places[1][0]] = None


def _told_by(items: Sequence[Item], numbers: Sequence[int | None], place: int) -> int | None:
    """The number of the word a superlative stands right before, None where it ends its phrase."""
    return numbers[place + 1] if place + 1 < len(items) else None


def _is_superlative(item: Item) -> bool:
    return item.kind == "content" and not item.is_name and item.surface.endswith("est") and len(item.surface) > 5


def _is_topic_first(asked: Question, second: Sequence[int | None]) -> bool:
    """Whether what a Chinese "how" question is about only went to its front: the order is turned round like a ring."""
    if any(item.kind == "preposition" for item in asked.items) or not any("how" in item.forms for item in asked.of("wh")):
        return False
    order = [number for number in second if number is not None]
    if not order:
        return False
    start = order.index(min(order))
    return order[start:] + order[:start] == sorted(order)


def _free_german_verbs(asked: Sequence[Item], first: list[int | None], kept: Sequence[Item], second: list[int | None]) -> None:
    """Takes out of the order what may be a verb: it goes to the end of clauses. Nouns stay, and so do adjectives before their nouns.

    Nouns are told by their capitals: without any, everything stays.
    """
    if not (_has_nouns(asked) and _has_nouns(kept)):
        return
    bound = _bound(asked, first) & _bound(kept, second)
    for items, numbers in ((asked, first), (kept, second)):
        for place, number in enumerate(numbers):
            if number is not None and items[place].kind == "content" and not _is_noun(items[place]) and number not in bound:
                numbers[place] = None


def _bound(items: Sequence[Item], numbers: Sequence[int | None]) -> set[int]:
    """Numbers of words that stand as an adjective does, right before a noun."""
    return {
        number
        for (item, number), following in zip(zip(items, numbers, strict=True), items[1:], strict=False)
        if number is not None and not _is_noun(item) and _is_noun(following) and item.surface.endswith(("e", "er", "es", "en", "em"))
    }


def _is_noun(item: Item) -> bool:
    return item.kind == "content" and item.surface[:1].isupper() and not item.starts_sentence


def _has_nouns(items: Sequence[Item]) -> bool:
    return any(_is_noun(item) for item in items)


def _segments(items: Sequence[Item], numbers: Sequence[int | None], nouns_end_phrases: bool) -> list[_Segment]:
    clause = current = _OpenSegment("", [])
    segments = [clause]
    # What a condition begins with, inside one.
    condition = ""
    for place, (item, number) in enumerate(zip(items, numbers, strict=True)):
        if item.kind == "preposition" and "of" in item.forms:
            # What belongs to a word stays with it.
            continue
        opened = _opened(item, condition)
        if opened is not None:
            current = opened
            segments.append(opened)
            if item.kind in ("wh", "pause") or "but" in item.forms:
                clause = opened
            if item.kind != "preposition":
                condition = "" if item.kind in ("wh", "pause") else opened.marker
        elif current.places and _ends_segment(items, place, bool(condition) and current.marker == condition):
            current = clause
        elif item.kind == "conjunction":
            current.places.append(-1)
        elif number is not None:
            current.places.append(number)
            if nouns_end_phrases and _is_noun(item) and not condition:
                current = clause
    return [_Segment(segment.marker, _sorted_pairs(segment.places)) for segment in segments if segment.places]


def _opened(item: Item, condition: str) -> _OpenSegment | None:
    """The segment that begins with an item, if one does. Either half of what "but" joins may come first."""
    if "but" in item.forms:
        return _OpenSegment(condition, [])
    if item.kind == "wh":
        return _OpenSegment("what" if "explain" in item.forms else " ".join(sorted(item.forms)), [])
    if item.kind == "pause":
        return _OpenSegment("", [])
    return _OpenSegment(min(item.forms), []) if item.kind in _MARKERS and not (_SYMMETRIC & item.forms) else None


def _ends_segment(items: Sequence[Item], place: int, is_condition: bool) -> bool:
    """Whether the clause goes on behind what was said before: at its auxiliary, or at the subject behind a phrase at the front.

    A condition has an auxiliary of its own: "if it is wet"; what is asked begins with "do" or before a pronoun: "if it rains do I ...".
    """
    item, following = items[place], items[place + 1].kind if place + 1 < len(items) else None
    if item.kind in ("auxiliary", "modal"):
        return not is_condition or following == "person" or ("do" in item.forms and following != "negation")
    # "Since the update my watch ...".
    is_fronted = items[0].kind == "preposition" and not any(before.kind in ("person", "pause", "wh") for before in items[1:place])
    return item.kind == "person" and is_fronted


def _sorted_pairs(numbers: Sequence[int]) -> tuple[int, ...]:
    """With what stands on both sides of "and" and "or" in one order."""
    result = list(numbers)
    for place in range(1, len(result) - 1):
        if result[place] == -1 and result[place - 1] > result[place + 1] >= 0:
            result[place - 1], result[place + 1] = result[place + 1], result[place - 1]
    return tuple(result)


def _before(items: Sequence[Item], numbers: Sequence[int | None], kind: str) -> dict[int, set[str]]:
    """What of a kind stands before each numbered word, with nothing that counts between them."""
    found: dict[int, set[str]] = {}
    pending: set[str] = set()
    for item, number in zip(items, numbers, strict=True):
        if item.kind == kind:
            pending |= item.forms
        elif number is not None:
            if pending:
                found.setdefault(number, set()).update(pending)
            pending = set()
        elif item.kind in ("pause", "conjunction"):
            pending = set()
    return found


def _prepositions_at_odds(
    items: Sequence[Item], first: Sequence[int | None], others: Sequence[Item], second: Sequence[int | None], language: str | None
) -> str | None:
    mine, theirs = _before(items, first, "preposition"), _before(others, second, "preposition")
    for number in mine.keys() & theirs.keys():
        left, right = mine[number] - theirs[number], theirs[number] - mine[number]
        for one in left:
            for other in right:
                is_place = {one, other} == {"in", "on"} and language == "en" and not items[number].is_name
                if is_place or frozenset({one, other}) in _AT_ODDS:
                    return f"{one!r} against {other!r} before {items[number].surface!r}"
    for marker in ("from", "to", "into", "than", "for", "by", "against"):
        here = {number for number, markers in mine.items() if marker in markers}
        there = {number for number, markers in theirs.items() if marker in markers}
        if here - there and there - here:
            return f"{marker!r} stands before {items[min(here - there)].surface!r} and before {items[min(there - here)].surface!r}"
    return None


def _steering_elsewhere(
    asked: Sequence[Item], first: Sequence[int | None], kept: Sequence[Item], second: Sequence[int | None]
) -> str | None:
    """The same "only" or "all" before another word."""
    mine, theirs = _before(asked, first, "quantifier"), _before(kept, second, "quantifier")
    if all(any(item.kind == "conjunction" and _SYMMETRIC & item.forms for item in items) for items in (asked, kept)):
        # What is denied of one of two: "A and not B".
        denied, also = _before(asked, first, "negation"), _before(kept, second, "negation")
        if denied and also and denied.keys() != also.keys():
            return "another word is denied"
    for word in {word for words in (*mine.values(), *theirs.values()) for word in words}:
        left = {number for number, words in mine.items() if word in words}
        right = {number for number, words in theirs.items() if word in words}
        if left and right and left != right:
            return f"{word!r} stands before other words"
    return None
