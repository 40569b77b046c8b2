"""Parts of a semantic cache as a test says: an embedder of given vectors, and a cache on a store in the process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np

from prompt_cache.embedding.embedder import EmbeddingFailed, Vector
from prompt_cache.entry import CachedAnswer, CachedDelta
from prompt_cache.keys import KeyMaker, SemanticScope
from prompt_cache.semantic.config import SemanticConfig
from prompt_cache.semantic.judge import Judge, Judgement
from prompt_cache.semantic.lookup import Found, OpenedStore, Terms
from prompt_cache.semantic.semantic_cache import SemanticCache
from prompt_cache.vectors.local import LocalStore

SECRET = b"0123456789abcdef"
DIMENSIONS = 4
SCOPE = SemanticScope(
    tenant="a",
    model="m",
    weights_revision="w",
    computation="c",
    tokenizer_sha256="t",
    sampling=b"s",
    context=b"x",
    embedder="e",
    salt="",
    generation=0,
)


def vector_at(cosine: float) -> Vector:
    """A unit vector that has this cosine with (1, 0, 0, 0)."""
    return np.array([cosine, np.sqrt(max(0.0, 1 - cosine * cosine)), 0, 0], dtype=np.float32)


class FakeEmbedder:
    """Gives the vectors it was told of, and (1, 0, 0, 0) for all other texts."""

    def __init__(self, cosines: dict[str, float | None] | None = None) -> None:
        self.cosines = cosines or {}
        self.failing = False
        self.asked: list[str] = []
        self.closed = False

    id = "fake/1"
    dimensions = DIMENSIONS
    is_weak = False

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """See `Embedder`."""
        self.asked += texts
        if self.failing:
            raise EmbeddingFailed("broken")
        cosines = [self.cosines.get(text, 1.0) for text in texts]
        return [None if one is None else vector_at(one) for one in cosines]

    async def close(self) -> None:
        """Notes it."""
        self.closed = True


class FakeJudge:
    """Says what it was told to, and notes what it was asked."""

    def __init__(self, says: Judgement) -> None:
        self.says = says
        self.asked: list[tuple[str, str]] = []
        self.closed = False

    async def compare(self, first: str, second: str) -> Judgement:
        """See `Judge`."""
        self.asked.append((first, second))
        return self.says

    async def close(self) -> None:
        """Notes it."""
        self.closed = True


class SemanticScene:
    """A semantic cache on a store in the process, at a time that stands still, with draws of 0.5."""

    def __init__(self, cosines: dict[str, float | None] | None = None, judge: Judge | None = None, **config: Any) -> None:
        self.embedder = FakeEmbedder(cosines)
        self.now = 1_000_000.0
        self.draws = 0.5
        # Raised in turn where the store is looked for; and for how long was waited then.
        self.store_errors: list[Exception] = []
        self.slept: list[float] = []
        self.config = SemanticConfig(**{"audited_share": 0.0, "lookup_timeout_s": 60.0, **config})
        self.store = LocalStore(dimensions=DIMENSIONS, limits=self.config.limits, clock=lambda: self.now)
        self.cache = SemanticCache(
            self.config,
            embedder=self.embedder,
            keys=KeyMaker(SECRET),
            all_secrets=(SECRET,),
            open_store=self._open,
            guarded=None,
            wall=lambda: self.now,
            draw=lambda: self.draws,
            sleep=self._sleep,
            judge=judge,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def _open(self) -> OpenedStore:
        if self.store_errors:
            raise self.store_errors.pop(0)
        return OpenedStore(self.store, "a test", ())

    async def started(self) -> SemanticScene:
        """Itself, with its store."""
        await self.cache.start()
        await self.cache.opened()
        return self

    async def look(self, question: str, scope: SemanticScope = SCOPE, **terms: Any) -> Found:
        """What there is for a question."""
        return await self.cache.look(scope, question, asyncio.ensure_future(self.cache.embed(question)), Terms(**terms))

    async def ask(self, question: str, answer: str, scope: SemanticScope = SCOPE, **terms: Any) -> Found:
        """Looks for a question; where nothing is served, the model answers, and its answer is compared and kept."""
        found = await self.look(question, scope, **terms)
        if found.served is None or found.audit:
            self.cache.compare(found, answer)
        if found.served is None:
            self.cache.keep(found, answered(answer, now=self.now))
        await self.cache.drain()
        return found


def answered(text: str, *, now: float = 0.0, tokens: int = 3) -> CachedAnswer:
    """A finished answer of so many tokens."""
    return CachedAnswer(deltas=(CachedDelta(text, tuple(range(tokens))),), finish_reason="stop", prompt_tokens=5, created_at=int(now))
