"""Parts of a sentence that go with a word: what "stop" is followed by, a preposition left behind, both sides of an "and"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from prompt_cache.semantic.parsing.items import Item, unmatched

# "Stop to smoke" and "stop smoking" are two things.
_TAKES_BOTH = frozenset({"stop", "remember", "forget", "regret", "quit", "try"})
# Prepositions that go with the word right before them.
_TELLS_OF_ONE = frozenset({"from", "with", "without"})
_PARTICLES = frozenset({"in", "on"})
_THINGS = frozenset({"what", "who"})
# What cannot stand inside one of two things that "and" joins.
_ENDS_CONJUNCT = frozenset({"conjunction", "wh", "pause", "auxiliary", "modal"})


def other_complement(asked: Sequence[Item], kept: Sequence[Item]) -> str | None:
    """Refuses "to" behind a verb that means another thing without it, and a preposition left behind in one alone."""
    for items, others in ((asked, kept), (kept, asked)):
        there = _with_to(others)
        for verb in _with_to(items) - there:
            if any(item.kind == "content" and verb in item.forms for item in others):
                return f"{verb!r} is followed by 'to' in one alone"
        for joined in unmatched(_verbs(items, has_particle=True), _verbs(others, has_particle=True)):
            if any(joined.corresponds(plain) for plain in _verbs(others, has_particle=False)):
                return f"{joined.surface!r} has a particle in one alone"
        hanging = _left_hanging(items)
        if hanging is not None and not any(item.kind == "preposition" and item.corresponds(hanging) for item in others):
            return f"{hanging.surface!r} stands behind in one alone"
    return _other_compared(asked, kept)


def _verbs(items: Sequence[Item], *, has_particle: bool) -> list[Item]:
    """Verbs behind a pronoun, with "in" or "on" right behind them or with what they are done to: "lock in a rate", "lock a rate"."""
    return [
        verb
        for subject, verb, after in zip(items, items[1:], items[2:], strict=False)
        if subject.kind == "person"
        and verb.kind == "content"
        and (after.kind == "preposition" and not _PARTICLES.isdisjoint(after.forms) if has_particle else after.kind == "content")
    ]


def _with_to(items: Sequence[Item]) -> set[str]:
    return {
        form
        for item, after in pairwise(items)
        if item.kind == "content" and after.kind == "preposition" and "to" in after.forms
        for form in item.forms & _TAKES_BOTH
    }


def _left_hanging(items: Sequence[Item]) -> Item | None:
    """The preposition a question of a thing or a person ends with: "what are bees attracted to"."""
    if not any(item.kind == "wh" and item.forms & _THINGS for item in items):
        return None
    last = next((item for item in reversed(items) if item.kind != "pause"), None)
    return last if last is not None and last.kind == "preposition" else None


def in_another_sequence(asked: Sequence[Item], kept: Sequence[Item]) -> str | None:
    """Refuses two steps the other way round: "by name and then by date"; where things are sorted, "and" says so too."""
    steps = []
    for items in (asked, kept):
        is_sorting = any(item.kind == "content" and "sort" in item.forms for item in items)
        joints = [place for place, item in enumerate(items) if "andthen" in item.forms or (is_sorting and "and" in item.forms)]
        if len(joints) != 1:
            return None
        steps.append(next((item for item in items[joints[0] + 1 :] if item.kind in ("content", "number", "verbatim")), None))
    first, second = steps
    if first is None or second is None or first.corresponds(second):
        return None
    return f"{first.surface!r} against {second.surface!r} as the second step"


def with_conjuncts_of(asked: Sequence[Item], kept: Sequence[Item]) -> Sequence[Item]:
    """The kept items; where "and" joins the same two things the other way round, in the order of the asked ones."""
    mine, theirs = _conjuncts(asked), _conjuncts(kept)
    if mine is None or theirs is None:
        return kept
    start, joint, end = theirs
    left, right = kept[start:joint], kept[joint + 1 : end]
    if not (_alike(left, asked[mine[1] + 1 : mine[2]]) and _alike(right, asked[mine[0] : mine[1]])):
        return kept
    return [*kept[:start], *right, kept[joint], *left, *kept[end:]]


def _other_compared(asked: Sequence[Item], kept: Sequence[Item]) -> str | None:
    """What is told of the second of two things that are compared is told of the other: "a cat and a dog that bites"."""
    mine, theirs = _conjuncts(asked), _conjuncts(kept)
    if mine is None or theirs is None or not all(any("difference" in item.forms for item in items) for items in (asked, kept)):
        return None
    (first, other), (second, another) = ((items[at[0]], items[at[1] + 1]) for items, at in ((asked, mine), (kept, theirs)))
    if not (first.corresponds(another) and other.corresponds(second)) or first.corresponds(second):
        return None
    swapped = _alike(asked[mine[0] : mine[1]], kept[theirs[1] + 1 : theirs[2]]) and _alike(
        asked[mine[1] + 1 : mine[2]], kept[theirs[0] : theirs[1]]
    )
    is_told = any(
        (not swapped and at[2] - at[1] - 1 > at[1] - at[0]) or (at[2] < len(items) and not _TELLS_OF_ONE.isdisjoint(items[at[2]].forms))
        for items, at in ((asked, mine), (kept, theirs))
    )
    return f"{other.surface!r} and {another.surface!r} are told more of" if is_told else None


def _conjuncts(items: Sequence[Item]) -> tuple[int, int, int] | None:
    """Where the first of two things begins, where the "and" between them stands, and where the second ends."""
    joints = [place for place, item in enumerate(items) if item.kind == "conjunction" and item.forms & {"and", "or"}]
    if len(joints) != 1:
        return None
    start = end = joints[0]
    while start and not _bounds(items[start - 1]):
        start -= 1
    is_repeated = start > 0 and end + 1 < len(items) and items[start - 1].kind == items[end + 1].kind == "preposition"
    if is_repeated:
        # "In the morning or in the evening".
        end += 1
    while end + 1 < len(items) and not _bounds(items[end + 1]):
        end += 1
    if is_repeated:
        return (start - 1, joints[0], end + 1) if start < joints[0] < end - 1 else None
    # A thing begins behind a preposition; "the difference between" is one word.
    is_bound = start > 0 and (items[start - 1].kind == "preposition" or "difference" in items[start - 1].forms)
    return (start, joints[0], end + 1) if is_bound and start < joints[0] < end else None


def _bounds(item: Item) -> bool:
    return item.kind in _ENDS_CONJUNCT or (item.kind == "preposition" and "of" not in item.forms) or "difference" in item.forms


def _alike(first: Sequence[Item], second: Sequence[Item]) -> bool:
    return len(first) == len(second) and all(one.corresponds(other) for one, other in zip(first, second, strict=True))
