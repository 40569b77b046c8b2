"""Tables of one language in the form the parser reads.

Phrases are written one rule a line, `how do i | how can i = ?how`; synonyms and contraries one group a line or between semicolons. What a
phrase stands for begins with a sign that says its kind: `?` question word, `!` negation, `%` quantifier, `~` modal, `<` preposition, `&`
conjunction, `^` auxiliary, `@` person, `+` content. Forms of one item are parted by `/`. Nothing after the `=` means that the phrase says
nothing. `*` before a phrase: at the start of a sentence alone ("list the planets", not "sort a list").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prompt_cache.semantic.parsing.items import Item, Kind

_KIND_OF_SIGN: Mapping[str, Kind] = {
    "?": "wh",
    "!": "negation",
    "%": "quantifier",
    "~": "modal",
    "<": "preposition",
    "&": "conjunction",
    "^": "auxiliary",
    "@": "person",
    "+": "content",
}


class Phrase(NamedTuple):
    """Words in a row, and what they stand for."""

    words: tuple[str, ...]
    items: tuple[Item, ...]
    is_opening: bool


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """What is known of a language.

    Attributes:
        phrases: By their first word and their second ("" for single words), longest first.
        synonyms: Groups a base form belongs to.
        opposites: Words that mean the contrary, by base form; symmetric.
        base_forms: Of a lower-case word, itself first.
        separable: Verb and particle that stand apart ("turn ... on"), and what they stand for together.
        requests: What one may be asked to do after "can you", by base form.
        names_are_capitalised: Whether a capital inside a sentence says that a word is a name.
        known: Words the tables hold, which are therefore no typing errors.
    """

    phrases: Mapping[str, Mapping[str, tuple[Phrase, ...]]]
    synonyms: Mapping[str, frozenset[str]]
    opposites: Mapping[str, frozenset[str]]
    base_forms: Callable[[str], tuple[str, ...]]
    separable: Mapping[tuple[str, str], str]
    requests: frozenset[str]
    names_are_capitalised: bool
    known: frozenset[str]

    def phrases_from(self, first: str, second: str) -> Sequence[Phrase]:
        """Phrases that may begin with two words, longest first. Their first word may be inflected where they are content."""
        found: list[Phrase] = []
        for place, base in enumerate(self.base_forms(first)):
            by_second = self.phrases.get(base)
            if by_second is not None:
                several = by_second.get(second, ()) if second else ()
                found += several if place == 0 else [phrase for phrase in several if all(item.kind == "content" for item in phrase.items)]
        return [*found, *self.single(first)]

    def single(self, word: str) -> Sequence[Phrase]:
        """What a word means alone."""
        return self.phrases[word].get("", ()) if word in self.phrases else ()

    def forms(self, word: str) -> frozenset[str]:
        """What a lower-case word may stand for."""
        bases = self.base_forms(word)
        groups = [self.synonyms[base] for base in bases if base in self.synonyms]
        return frozenset(bases).union(*groups)

    def is_known(self, word: str) -> bool:
        """Whether the word or its base form stands in a table."""
        return any(base in self.known for base in self.base_forms(word))


def build(
    *,
    phrases: str,
    synonyms: str,
    opposites: str,
    base_forms: Callable[[str], tuple[str, ...]],
    separable: str = "",
    requests: frozenset[str] = frozenset(),
    names_are_capitalised: bool = True,
) -> Lexicon:
    """A lexicon from its tables."""
    groups: dict[str, set[str]] = defaultdict(set)
    for number, line in enumerate(_lines(synonyms)):
        for member in line.split():
            groups[member].add(f"={number}")
    rules = [rule for line in _lines(phrases) for rule in _phrases(line, groups)]
    by_words: dict[str, dict[str, list[Phrase]]] = defaultdict(lambda: defaultdict(list))
    for rule in rules:
        by_words[rule.words[0]][rule.words[1] if len(rule.words) > 1 else ""].append(rule)
    contrary: dict[str, set[str]] = defaultdict(set)
    for line in _lines(opposites):
        left, right = (side.split() for side in line.split("/"))
        for one in left:
            contrary[one].update(right)
        for one in right:
            contrary[one].update(left)
    pairs = [line.split() for line in _lines(separable)]
    return Lexicon(
        phrases={
            first: {second: tuple(sorted(found, key=lambda rule: -len(rule.words))) for second, found in by_second.items()}
            for first, by_second in by_words.items()
        },
        synonyms={word: frozenset(found) for word, found in groups.items()},
        opposites={word: frozenset(found) for word, found in contrary.items()},
        base_forms=base_forms,
        separable={(verb, particle): result for verb, particle, result in pairs},
        requests=requests,
        names_are_capitalised=names_are_capitalised,
        known=frozenset(groups) | frozenset(contrary) | {word for rule in rules for word in rule.words},
    )


def _lines(table: str) -> Iterable[str]:
    return (line for raw in table.casefold().replace(" ; ", "\n").splitlines() if (line := raw.strip()))


def _phrases(line: str, groups: Mapping[str, set[str]]) -> list[Phrase]:
    left, _, right = line.partition("=")
    found = []
    for words in (alternative.strip() for alternative in left.split("|")):
        plain = words.removeprefix("*")
        found.append(Phrase(tuple(plain.split()), tuple(_item(one, plain, groups) for one in right.split()), words != plain))
    return found


def _item(written: str, surface: str, groups: Mapping[str, set[str]]) -> Item:
    kind = _KIND_OF_SIGN[written[0]]
    forms = set(written[1:].split("/"))
    if kind == "content":
        forms.update(*(groups[form] for form in tuple(forms) if form in groups))
    return Item(kind, frozenset(forms), surface)
