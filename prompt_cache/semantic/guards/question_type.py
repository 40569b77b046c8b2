"""Who, when, where, why, how; whether it can, must or should be; past or future; mine or yours."""

from __future__ import annotations

from itertools import pairwise

from prompt_cache.semantic.parsing.items import Item, Question, unmatched

_WHAT = Item("wh", frozenset({"what", "explain"}), "what")
_MANNER = frozenset({"how"})
_SUBJECTS = frozenset({"i", "we", "ich", "wir", "yo", "nosotros"})
_OBJECTS = frozenset({"me", "us", "mich", "mir", "uns"})
# They may be anybody: "how did they build it" is "how was it built".
_DO = frozenset({"do", "present"})
# Questions in which "do I" asks what to do; "why do I cough" asks for no advice.
_DELIBERATING = frozenset({"where", "who", "what"})
_NOBODY = frozenset({"they", "one", "ones"})
# What a clause begins with.
_OPENERS = frozenset({"if", "unless", "because", "while", "when", "before", "after", "until", "although"})
_EXTENT = frozenset({"howlong", "howoften", "howmuch", "howmany"})
# "How do they differ" is "what is the difference".
_MANNER_IS_MATTER = frozenset({"difference", "todo"})


def check(asked: Question, kept: Question) -> str | None:
    """Refuses when another kind of answer is asked for."""
    mine, theirs = _words(asked), _words(kept)
    odd = unmatched(mine, theirs) + unmatched(theirs, mine)
    if odd:
        return f"{_shown(mine)} against {_shown(theirs)}"
    forms = {form for item in (*mine, *theirs) for form in item.forms}
    return _modality(asked, kept, forms) or _tense(asked, kept) or _person(asked, kept, forms)


def _words(question: Question) -> list[Item]:
    words = question.of("wh")
    if any(_MANNER_IS_MATTER & item.forms for item in question.of("content")):
        words = [_WHAT if "how" in item.forms else item for item in words]
    return words or [_WHAT]


def _shown(words: list[Item]) -> str:
    return " + ".join(repr(item.surface) for item in words)


def _modality(asked: Question, kept: Question, forms: set[str]) -> str | None:
    mine, theirs = ({form for item in question.of("modal") for form in item.forms} - {"would"} for question in (asked, kept))
    if _MANNER & forms and mine | theirs != {"can", "must"}:
        return None
    if _EXTENT & forms:
        mine, theirs = ({"should" if form == "must" else form for form in side} for side in (mine, theirs))
    if mine == theirs:
        return None
    if _asks_what_to_do(asked, mine, theirs) or _asks_what_to_do(kept, theirs, mine):
        return None
    return f"{'/'.join(sorted(mine)) or 'no modal verb'} against {'/'.join(sorted(theirs)) or 'no modal verb'}"


def _asks_what_to_do(question: Question, its: set[str], other: set[str]) -> bool:
    """Whether "do I" says what the other says by "should": "who do I talk to", "where do I find it"."""
    first = next((item for item in question.items if item.kind == "wh"), None)
    if its or len(other) != 1 or first is None or first.forms.isdisjoint(_DELIBERATING):
        return False
    if "should" not in other and ("can" not in other or "where" not in first.forms):
        return False
    return any(
        item.kind == "auxiliary" and item.forms == _DO and after.surface.casefold() in _SUBJECTS for item, after in pairwise(question.items)
    )


def _tense(asked: Question, kept: Question) -> str | None:
    mine, theirs = _tenses(asked), _tenses(kept)
    if ("future" in mine) != ("future" in theirs):
        return "future in one alone"
    left, right = _is_past(asked, mine), _is_past(kept, theirs)
    if left == right:
        return None
    past, other, its_tenses = (asked, kept, theirs) if left else (kept, asked, mine)
    explicit = "past" in (mine if left else theirs)
    if explicit and "present" in its_tenses:
        return "past against present"
    # No auxiliary on one side: the same verb tells.
    for item in past.of("content"):
        for one in other.of("content"):
            if item.is_past and not one.is_past and item.corresponds(one) and _is_finite(one, item):
                return f"{item.surface!r} against {one.surface!r}"
    return None


def _tenses(question: Question) -> set[str]:
    return {form for item in question.of("auxiliary") for form in item.forms}


def _is_past(question: Question, tenses: set[str]) -> bool:
    return "past" in tenses or ("present" not in tenses and any(item.is_past for item in question.of("content")))


def _is_finite(one: Item, past: Item) -> bool:
    """Whether a word is the same verb as another, in its base form or with an s."""
    word = one.surface.casefold()
    return word in past.forms or word.removesuffix("s") in past.forms


def _person(asked: Question, kept: Question, forms: set[str]) -> str | None:
    mine, theirs = ({form for item in question.of("person") for form in item.forms} for question in (asked, kept))
    for form in ("he", "she"):
        if (form in mine) != (form in theirs):
            return f"{form!r} in one alone"
    if _order_of_persons(asked) != _order_of_persons(kept):
        return "persons change places"
    for one, other in ((asked, kept), (kept, asked)):
        if _is_object_alone(one) and _is_subject_alone(other):
            return "'me' against 'I'"
        if _num(one, _SUBJECTS) > _num(other, _SUBJECTS) and _num(one, _OBJECTS) < _num(other, _OBJECTS):
            return "'I' against 'me'"
    left_clauses, right_clauses = _clause_subjects(asked), _clause_subjects(kept)
    for opener in left_clauses.keys() & right_clauses.keys():
        if (left_clauses[opener] == "they") != (right_clauses[opener] == "they"):
            return f"{left_clauses[opener]!r} against {right_clauses[opener]!r} after {opener!r}"
    if (_MANNER | _EXTENT) & forms:
        return None
    for left, right in ((mine, theirs), (theirs, mine)):
        if "me" in left - right and "you" in right - left:
            return "'me' against 'you'"
    return None


def _order_of_persons(question: Question) -> list[str]:
    """Who stands before whom, where several do."""
    order = [min(item.forms) for item in question.of("person") if item.surface.casefold() not in _NOBODY]
    return order if len(set(order)) > 1 else []


def _clause_subjects(question: Question) -> dict[str, str]:
    """The pronoun right behind "if", "before" and the like, by the word that begins the clause."""
    return {
        opener: min(person.forms)
        for item, person in pairwise(question.items)
        if person.kind == "person"
        for opener in _OPENERS & {form.partition(".")[0] for form in item.forms}
    }


def _num(question: Question, surfaces: frozenset[str]) -> int:
    return sum(item.surface.casefold() in surfaces for item in question.of("person"))


def _is_subject_alone(question: Question) -> bool:
    surfaces = {item.surface.casefold() for item in question.of("person")}
    return bool(surfaces & _SUBJECTS) and not surfaces & _OBJECTS


def _is_object_alone(question: Question) -> bool:
    surfaces = {item.surface.casefold() for item in question.of("person")}
    return bool(surfaces & _OBJECTS) and not surfaces & _SUBJECTS
