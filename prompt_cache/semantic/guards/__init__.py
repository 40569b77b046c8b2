"""Refuse what only looks like the same question, each for one reason; know words and their order, no vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from prompt_cache.semantic.guards import (
    content_words,
    coverage,
    entities,
    negation,
    numbers,
    opposites,
    quantifiers,
    question_type,
    verbatim,
    word_order,
    wording,
)
from prompt_cache.semantic.parsing.items import Question

# Says why the answer to one question is no answer to the other; None if it finds nothing.
Guard = Callable[[Question, Question], str | None]

# In the order they are asked: what tells most about a refusal first.
GUARDS: Mapping[str, Guard] = MappingProxyType(
    {
        "language": coverage.check,
        "verbatim": verbatim.check,
        "numbers": numbers.check,
        "negation": negation.check,
        "opposites": opposites.check,
        "quantifiers": quantifiers.check,
        "question_type": question_type.check,
        "entities": entities.check,
        "word_order": word_order.check,
        "content_words": content_words.check,
        "wording": wording.check,
    }
)

__all__ = ["GUARDS", "Guard"]
