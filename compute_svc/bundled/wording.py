"""Changes to a question that keep its meaning, drawn at random while training, so that the model learns what is asked and not how."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from pathlib import Path

_OPENINGS = ("hey, ", "hi, ", "hello, ", "ok, ", "so ", "please tell me: ", "please tell me, ", "please, ", "tell me, ", "quick question: ",
             "question: ", "can you tell me ", "could you tell me ", "i want to know ", "i'd like to know ", "do you know ", "one more thing: ")  # fmt: skip
_CLOSINGS = (" please", ", please", ", thanks", " exactly", " in Triserve", " here", " in short", " in this project", " by the way")
# Phrases of one line replace each other at the beginning of a question.
_SYNONYMS = tuple(
    tuple(line.split("|"))
    for line in """
how do i|how can i|how to|how would i|how should i|what's the way to|what do i do to|how does one
can i|could i|is it possible to|may i|am i able to|is there a way to
why does|how come|what is the reason|for what reason does|why would
why is|how come|what is the reason|what's the reason
does triserve|does it|can triserve|will triserve|do you
what happens|what does triserve do|what is done|what goes on
which|what
who is|who's
where is|where's|where do i find|where can i find
""".strip().split("\n")
)
_DEFINITION = re.compile(
    r"(?:what is|what's|what are|define|explain|describe|tell me about) (?P<subject>(?:[\w.:/-]+ ?){1,4})\??", re.IGNORECASE
)
_DEFINITION_FORMS = ("what is {}", "what's {}", "{}", "explain {}", "describe {}", "tell me about {}", "define {}", "what does {} mean",
                     "{} meaning", "{} explained", "what do you mean by {}", "can you explain {}", "i don't understand {}")  # fmt: skip
_FILLERS = frozenset(
    (
        "a",
        "an",
        "and",
        "are",
        "at",
        "do",
        "does",
        "for",
        "i",
        "in",
        "is",
        "it",
        "its",
        "me",
        "my",
        "of",
        "on",
        "that",
        "the",
        "this",
        "to",
        "we",
        "you",
    )
)


def _other_form(question: str, rng: random.Random) -> str:
    """Asks in other words, where a rule knows some."""
    definition = _DEFINITION.fullmatch(question)
    if definition:
        return rng.choice(_DEFINITION_FORMS).format(definition["subject"])
    lowered = question.lower()
    for phrases in _SYNONYMS:
        for phrase in phrases:
            if lowered.startswith(phrase + " "):
                return rng.choice(phrases) + question[len(phrase) :]
    return question


def _read_thesaurus(path: Path) -> dict[str, list[str]]:
    """For each word, what may stand in its place: one line is a word and its substitutes, or a group of them."""
    substitutes: dict[str, list[str]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines():
        group = line.split(" | ")
        for word in group:
            substitutes[word].extend(other for other in group if other != word)
    return dict(substitutes)


_SUBSTITUTES = _read_thesaurus(Path(__file__).parent / "thesaurus.txt")


def _with_synonyms(question: str, rng: random.Random) -> str:
    """Puts other words of like meaning in the place of some."""
    words = []
    for word in question.split(" "):
        bare = word.strip("?.,!")
        substitutes = _SUBSTITUTES.get(bare.lower())
        words.append(word.replace(bare, rng.choice(substitutes)) if substitutes and rng.random() < 0.4 else word)
    return " ".join(words)


def _without_fillers(question: str, rng: random.Random) -> str:
    """Leaves out some of the words that carry little, as people do in search boxes."""
    kept = [word for word in question.split(" ") if word.lower() not in _FILLERS or rng.random() < 0.5]
    return " ".join(kept) if len(kept) > 1 else question


def _with_slip(question: str, rng: random.Random) -> str:
    """Makes one slip of the keyboard in one of the longer words."""
    words = question.split(" ")
    long_words = [index for index, word in enumerate(words) if len(word) >= 5]
    if not long_words:
        return question
    chosen = rng.choice(long_words)
    word = words[chosen]
    at = rng.randrange(1, len(word) - 2)
    words[chosen] = rng.choice(
        (word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:])
    )
    return " ".join(words)


def _with_other_case(question: str, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.45:
        return question
    if chance < 0.8:
        return question.lower()
    if chance < 0.96:
        return question[:1].upper() + question[1:]
    return question.upper()


def _with_other_ending(question: str, rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.5:
        return question
    return question.rstrip(" ?.!") + rng.choice(("", "", "", "?", "?", ".", " ?", "??", "!"))


def reword(question: str, rng: random.Random) -> str:
    """Returns the question in a wording drawn from `rng`; often the same one."""
    if rng.random() < 0.3:
        question = _other_form(question, rng)
    if rng.random() < 0.5:
        question = _with_synonyms(question, rng)
    if rng.random() < 0.2:
        question = _without_fillers(question, rng)
    if rng.random() < 0.1:
        question = _with_slip(question, rng)
    if rng.random() < 0.1:
        question = question.rstrip(" ?.!") + rng.choice(_CLOSINGS) + ("?" if question.endswith("?") else "")
    question = _with_other_ending(_with_other_case(question, rng), rng)
    if rng.random() < 0.15:
        question = rng.choice(_OPENINGS) + question[:1].lower() + question[1:]
    return question
