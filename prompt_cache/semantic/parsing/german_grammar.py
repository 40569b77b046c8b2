"""Puts German verbs together whose first part stands at the end of the clause: "setze ... zurück" is "zurücksetze"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prompt_cache.semantic.parsing.tables.german import GERMAN_VERB_PARTICLES, german_base_forms
from prompt_cache.semantic.parsing.tokens import Token

_PRONOUNS = frozenset({"ich", "man", "wir", "du", "sie", "er", "es", "ihr"})


def with_whole_verbs(found: Sequence[Token], known: Mapping[tuple[str, str], str]) -> list[Token]:
    """The tokens, each verb before a pronoun joined with the particle its clause ends in.

    Args:
        known: Verbs and particles the tables have a meaning for; they are left alone.
    """
    result = list(found)
    start = 0
    for end in range(len(found) + 1):
        if end < len(found) and found[end].kind != "pause":
            continue
        _join(result, found, start, end, known)
        start = end + 1
    return [token for token in result if token.surface]


def _join(result: list[Token], found: Sequence[Token], start: int, end: int, known: Mapping[tuple[str, str], str]) -> None:
    """Joins the verb of one clause, and leaves an empty token where its particle stood."""
    if end - start < 4 or found[end - 1].lower not in GERMAN_VERB_PARTICLES:
        return
    particle = found[end - 1].lower
    verb = next((place - 1 for place in range(start + 1, end - 1) if found[place].lower in _PRONOUNS), start - 1)
    if verb < start or found[verb].kind != "word" or any((base, particle) in known for base in german_base_forms(found[verb].lower)):
        return
    whole = particle + found[verb].lower
    result[verb] = Token("word", whole, whole)
    result[end - 1] = Token("word", "", "")
