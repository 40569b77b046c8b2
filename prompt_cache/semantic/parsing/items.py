"""What a question is made of, for the guards that compare two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "verbatim" is text that is compared to the letter; "pause" parts clauses; "auxiliary" carries tense; "person" is a pronoun that refers.
Kind = Literal[
    "content", "number", "verbatim", "wh", "negation", "quantifier", "modal", "preposition", "conjunction", "auxiliary", "person", "pause"
]

MAX_PAIRED = 64


@dataclass(frozen=True, slots=True)
class Item:
    """A word, or several that mean one thing.

    Attributes:
        kind: What part it plays.
        forms: What it may stand for: base forms of the word and groups of synonyms. Two items correspond when they share one.
        surface: As written, for explanations.
        is_name: Written as a name is: its case matters, and it has no synonyms but its aliases.
        is_past: A verb in the past tense without an auxiliary.
        starts_sentence: It is capitalised anyway.
    """

    kind: Kind
    forms: frozenset[str]
    surface: str
    is_name: bool = False
    is_past: bool = False
    starts_sentence: bool = False

    def corresponds(self, other: Item) -> bool:
        """Whether the two may stand for the same."""
        return self.kind == other.kind and not self.forms.isdisjoint(other.forms)


@dataclass(frozen=True, slots=True)
class Question:
    """A question taken apart.

    Attributes:
        text: Normalised.
        language: "en", "de", "es" or "zh"; None where it is another, or cannot be told.
        items: In the order of the text; words without meaning of their own are left out.
        courtesy: Words of greetings, thanks and "could you tell me", which are left out too.
    """

    text: str
    language: str | None
    items: tuple[Item, ...]
    courtesy: tuple[str, ...] = ()

    def of(self, *kinds: Kind) -> list[Item]:
        """The items of some kinds, in order."""
        return [item for item in self.items if item.kind in kinds]


def unmatched(first: list[Item], second: list[Item]) -> list[Item]:
    """Items of the first that correspond to none of the second."""
    return [item for item in first if not any(item.corresponds(other) for other in second)]


def unpaired(first: list[Item], second: list[Item]) -> list[Item]:
    """Items of the first that are left when each is paired with one of the second that corresponds, and no two with the same.

    As many as can be are paired (Kuhn's algorithm): a word that stands twice in one question has to stand twice in the other. None of texts of
    more than `MAX_PAIRED` items, where that would cost too much.
    """
    if max(len(first), len(second)) > MAX_PAIRED:
        return []
    taken: dict[int, int] = {}

    def is_paired(index: int, seen: set[int]) -> bool:
        for place, other in enumerate(second):
            if place not in seen and first[index].corresponds(other):
                seen.add(place)
                if place not in taken or is_paired(taken[place], seen):
                    taken[place] = index
                    return True
        return False

    return [item for index, item in enumerate(first) if not is_paired(index, set())]
