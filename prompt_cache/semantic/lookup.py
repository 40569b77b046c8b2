"""What a request asks of the semantic cache, and what it comes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from prompt_cache.embedding.embedder import Vector
from prompt_cache.semantic.candidate import StepResult, Verdict
from prompt_cache.semantic.records import Record
from prompt_cache.vectors.vector_store import VectorStore

Outcome = Literal["hit", "would_hit", "near", "miss", "skipped", "off", "failed"]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What one request asks of an entry.

    Attributes:
        threshold: Least cosine, instead of the configuration's.
        max_age_s: Oldest answer that may be served.
        most_tokens: Longest answer that may be served.
    """

    threshold: float | None = None
    max_age_s: float | None = None
    most_tokens: int | None = None


class Near(NamedTuple):
    """An entry that was looked at.

    Attributes:
        entry_id: Its name in the scope.
        record: What it holds.
        cosine: To the question.
    """

    entry_id: str
    record: Record
    cosine: float


class Found(NamedTuple):
    """What a lookup came to.

    Attributes:
        outcome: "hit": `served` is to be served. "would_hit": it would have been, in shadow mode. "near": there was an entry, and a guard refused
            it. "miss": there was none. "skipped": the question is not one that is looked at. "off": the scope is switched off. "failed": the
            store or the vector could not be had in time.
        scope: The scope's name.
        question: Normalised.
        vector: Of it; None if there is none.
        served: The entry.
        compare: An entry whose answer is to be compared with the model's, once that is there.
        audit: Whether the model is to answer although the entry is served.
        refused_by: The step that refused the nearest.
        refused: That entry, where a guard refused it.
    """

    outcome: Outcome
    scope: str
    question: str
    vector: Vector | None = None
    served: Near | None = None
    compare: Near | None = None
    audit: bool = False
    refused_by: str | None = None
    refused: Near | None = None


class OpenedStore(NamedTuple):
    """A store that works.

    Attributes:
        store: The store.
        server: What it runs on.
        advice: What an operator should know or change, one sentence each.
    """

    store: VectorStore
    server: str
    advice: tuple[str, ...]


class NotExplained(Exception):
    """Nothing can be said of the entries near a question, not even that there are none; says why."""


class Explained(NamedTuple):
    """What was said of one entry near a question."""

    near: Near
    steps: list[StepResult]
    verdict: Verdict
