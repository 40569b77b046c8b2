"""Finds kept answers to questions that mean the same, checks itself against the model, and switches itself off where it is wrong too often.

A failure of any kind, of the embedder or of Redis, is a miss.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any

from prompt_cache.embedding.embedder import Embedder, EmbeddingFailed, Vector
from prompt_cache.entry import CachedAnswer
from prompt_cache.guarded_redis import GuardedRedis
from prompt_cache.keys import KeyMaker, SemanticScope
from prompt_cache.sealing import CorruptEntry, UnknownKey
from prompt_cache.semantic.budget import HitBudget
from prompt_cache.semantic.budgets import Budgets, ScopeReport
from prompt_cache.semantic.candidate import Candidate
from prompt_cache.semantic.comparing import Comparer
from prompt_cache.semantic.config import Mode, SemanticConfig
from prompt_cache.semantic.evaluator import EvaluatorPolicy, evaluate, explain
from prompt_cache.semantic.guards import GUARDS
from prompt_cache.semantic.judge import Judge
from prompt_cache.semantic.lookup import Explained, Found, Near, NotExplained, OpenedStore, Outcome, Terms
from prompt_cache.semantic.normalise import normalise
from prompt_cache.semantic.records import Record, RecordCodec
from prompt_cache.semantic.write_gates import reason_not_to_keep
from prompt_cache.vectors.vector_store import Neighbour, Observation, VectorStore

logger = logging.getLogger(__name__)

# Of the softmax over the cosines of answers that may be served.
_TEMPERATURE = 0.02
_ENTRY_ID_BYTES = 12
_OPEN_AGAIN_S = 5.0
_FIRST_WORDS = "How far is the moon?"


class SemanticCache:
    """Answers by meaning, within a scope.

    Args:
        config: Bounds and policy.
        embedder: Makes vectors.
        keys: Names scopes.
        all_secrets: As `Sealer` has them.
        open_store: Chooses the store; is called until it succeeds once.
        guarded: Redis; None = the store is in the process.
        wall: Seconds since 1970.
        draw: Gives numbers in [0, 1).
        embedding_counts: What the embedder has counted, by name.
        sleep: Waits for so many seconds.
        judge: Is asked in the background where comparing answers cannot tell; None = nobody is.
    """

    def __init__(
        self,
        config: SemanticConfig,
        *,
        embedder: Embedder,
        keys: KeyMaker,
        all_secrets: tuple[bytes, ...],
        open_store: Callable[[], Awaitable[OpenedStore]],
        guarded: GuardedRedis | None,
        wall: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        embedding_counts: Callable[[], Mapping[str, float]] = dict,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        judge: Judge | None = None,
    ) -> None:
        self._config = config
        self.embedder = embedder
        self._keys = keys
        self._codec = RecordCodec(all_secrets)
        self._open_store = open_store
        self._guarded = guarded
        self._wall = wall
        self._draw = draw
        self.embedding_counts = embedding_counts
        self._sleep = sleep
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self.store: VectorStore | None = None
        self.server = ""
        self.advice: tuple[str, ...] = ()
        self.budgets = Budgets(HitBudget(limit=config.max_wrong_share), guarded)
        self.outcomes: dict[Outcome, int] = dict.fromkeys(("hit", "would_hit", "near", "miss", "skipped", "off", "failed"), 0)
        self.refusals: dict[str, int] = {}
        self.comparer = Comparer(embedder, judge)
        self.corrupt = 0

    @property
    def is_open(self) -> bool:
        """Whether the embedder has shown what its vectors are, and there is a store."""
        return self.store is not None

    @property
    def uses_redis(self) -> bool:
        """Whether what is kept is in Redis."""
        return self._guarded is not None

    @property
    def mode(self) -> Mode:
        """Whether anything is served."""
        return self._config.mode

    async def start(self) -> None:
        """Looks for the store in the background."""
        self._opening = asyncio.create_task(self._open(), name="semantic-cache-store")

    async def opened(self) -> None:
        """Returns when there is a store."""
        if self._opening is not None:
            await self._opening

    async def close(self) -> None:
        """Lets go of the embedder and of what runs in the background."""
        tasks = [task for task in (self._opening, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.comparer.close()
        await self.embedder.close()

    async def drain(self) -> None:
        """Returns when nothing runs in the background."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._guarded is not None:
            await self._guarded.drain()

    def scope_name(self, scope: SemanticScope) -> str:
        """Of a scope, where what is kept in it lies."""
        return self._keys.scope(scope)

    async def embed(self, question: str) -> Vector | None:
        """The vector of a question, to be begun early; None if there is none or it fails."""
        if len(question) > self._config.max_question_bytes:
            return None
        try:
            (vector,) = await self.embedder.embed([normalise(question)])
        except EmbeddingFailed as error:
            logger.info("a question has no vector: %s", error)
            return None
        return vector

    async def look(self, scope: SemanticScope, question: str, vector: Awaitable[Vector | None], terms: Terms) -> Found:
        """What there is for a question.

        Args:
            scope: Within which answers may serve it.
            question: As it was asked.
            vector: From `embed`.
            terms: Of the request.
        """
        found = await self._look(scope, question, vector, terms)
        self.outcomes[found.outcome] += 1
        if found.refused_by is not None:
            self.refusals[found.refused_by] = self.refusals.get(found.refused_by, 0) + 1
        if found.outcome == "hit" and found.served is not None:
            entry_id = found.served.entry_id
            self._background(lambda store: store.hit(found.scope, entry_id))
            self.budgets.served(found.scope, self._wall())
        if found.refused is not None and found.refused_by is not None and self.comparer.judge is not None:
            self._run(self.comparer.check_refusal(found.refused_by, found.question, found.refused.record.question))
        return found

    async def prepare(self, scope: SemanticScope, question: str, vector: Awaitable[Vector | None]) -> Found:
        """What is needed to keep the answer to a question for which nothing is to be looked for."""
        name = self._keys.scope(scope)
        if len(question) > self._config.max_question_bytes:
            return Found("skipped", name, "")
        asked = normalise(question)
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                return Found("skipped", name, asked, await vector)
        except TimeoutError:
            return Found("skipped", name, asked)

    def keep(self, found: Found, answer: CachedAnswer) -> str | None:
        """Keeps the model's answer to a question that was looked for, in the background; or says in a word why not."""
        if found.vector is None:
            return "no_vector"
        text = answer.text
        reason = reason_not_to_keep(
            found.question,
            text,
            finish_reason=answer.finish_reason,
            num_bytes=len(text.encode()),
            max_bytes=self._config.max_entry_bytes,
        )
        if reason is not None:
            return reason
        vector, entry_id = found.vector, secrets.token_hex(_ENTRY_ID_BYTES)
        data = self._codec.encode(found.scope, entry_id, Record(question=found.question, answer=answer))
        saved = answer.prompt_tokens + answer.completion_tokens
        self._background(lambda store: store.add(found.scope, entry_id, vector, data, ttl_s=self._config.ttl_s, saved_tokens=saved))
        return None

    def compare(self, found: Found, text: str) -> None:
        """Learns from the model's answer to a question for which there was an entry, in the background."""
        if found.compare is not None:
            self._run(self._compare(found, found.compare, text))

    async def explain(self, scope: SemanticScope, question: str, terms: Terms) -> list[Explained]:
        """What every step says of every entry near a question. Counts nothing.

        Raises:
            NotExplained: the question has no vector, or the store cannot be asked.
        """
        name, asked = self._keys.scope(scope), normalise(question)
        vector = await self.embed(question)
        if vector is None:
            raise NotExplained("the question has no vector: the embedder fails, or the question is too long or in words it does not know")
        neighbours = await self._search(name, vector) if self.store is not None else None
        if neighbours is None:
            raise NotExplained("the store of the semantic cache cannot be asked now")
        policy, result = self._policy(terms), []
        for near, candidate in self._opened(name, neighbours):
            result.append(Explained(near, explain(asked, candidate, policy, 0.5), evaluate(asked, candidate, policy, 0.5)))
        return result

    def reports(self) -> list[ScopeReport]:
        """What is known of each scope's wrong hits."""
        return self.budgets.reports(self._wall())

    async def _look(self, scope: SemanticScope, question: str, vector: Awaitable[Vector | None], terms: Terms) -> Found:
        name = self._keys.scope(scope)
        if len(question) > self._config.max_question_bytes:
            return Found("skipped", name, "")
        asked = normalise(question)
        if not asked or len(asked.encode("utf-8", "surrogatepass")) > self._config.max_question_bytes:
            return Found("skipped", name, asked)
        if self.store is None:
            return Found("failed", name, asked)
        found: Vector | None = None
        try:
            async with asyncio.timeout(self._config.lookup_timeout_s):
                found = await vector
                if found is None:
                    return Found("skipped", name, asked)
                neighbours = await self._search(name, found)
        except TimeoutError:
            return Found("failed", name, asked, found)
        if neighbours is None:
            return Found("failed", name, asked, found)
        return self._decide(name, asked, found, neighbours, terms)

    async def _search(self, scope: str, vector: Vector) -> list[Neighbour] | None:
        assert self.store is not None, "the caller has looked"
        search = self.store.search(scope, vector, self._config.neighbours)
        if self._guarded is None:
            return await search
        if not self._guarded.usable():
            search.close()
            return None
        return await self._guarded.attempt(search)

    def _decide(self, scope: str, asked: str, vector: Vector, neighbours: list[Neighbour], terms: Terms) -> Found:
        policy = self._policy(terms)
        may_serve: list[Near] = []
        first_refusal: str | None = None
        refused: Near | None = None
        explored: Near | None = None
        for near, candidate in self._opened(scope, neighbours):
            if terms.most_tokens is not None and near.record.answer.completion_tokens > terms.most_tokens:
                continue
            verdict = evaluate(asked, candidate, policy, self._draw())
            if verdict.serve:
                may_serve.append(near)
                if self._config.choice == "first":
                    break
            elif verdict.explore and explored is None:
                explored = near
            elif first_refusal is None:
                first_refusal = verdict.refused_by
                refused = near if first_refusal in GUARDS else None
        if not may_serve:
            outcome: Outcome = "near" if first_refusal is not None or explored is not None else "miss"
            return Found(outcome, scope, asked, vector, compare=explored, refused_by=first_refusal, refused=refused)
        served = self._choose(may_serve)
        if self._config.mode == "shadow":
            return Found("would_hit", scope, asked, vector, compare=served)
        if self.budgets.is_off(scope, self._wall()):
            return Found("off", scope, asked, vector, compare=served)
        audit = self._draw() < self._config.audited_share
        return Found("hit", scope, asked, vector, served=served, compare=served if audit else None, audit=audit)

    def _choose(self, may_serve: list[Near]) -> Near:
        if self._config.choice == "freshest":
            return max(may_serve, key=lambda near: near.record.answer.created_at)
        if self._config.choice == "softmax":
            weights = [math.exp((near.cosine - may_serve[0].cosine) / _TEMPERATURE) for near in may_serve]
            point = self._draw() * sum(weights)
            for near, weight in zip(may_serve, weights, strict=True):
                point -= weight
                if point < 0:
                    return near
        return may_serve[0]

    def _opened(self, scope: str, neighbours: list[Neighbour]) -> Iterator[tuple[Near, Candidate]]:
        """Those whose bytes can be read, one by one; what cannot be is removed."""
        for one in neighbours:
            try:
                record = self._codec.decode(scope, one.entry_id, one.data)
            except UnknownKey:
                continue
            except CorruptEntry:
                self.corrupt += 1
                self._background(partial(_remove, scope, one.entry_id))
                continue
            age_s = max(0.0, self._wall() - record.answer.created_at)
            candidate = Candidate(question=record.question, cosine=one.cosine, age_s=age_s, observations=one.observations)
            yield Near(one.entry_id, record, one.cosine), candidate

    def _policy(self, terms: Terms) -> EvaluatorPolicy:
        return EvaluatorPolicy(
            threshold=self._config.threshold if terms.threshold is None else terms.threshold,
            is_weak_embedder=self.embedder.is_weak,
            max_age_s=terms.max_age_s,
            bound="explore" if self._config.learned else "suffice",
            target_error_rate=self._config.max_wrong_share,
            grey_margin=self._config.grey_margin if self.comparer.judge is not None else 0.0,
        )

    async def _compare(self, found: Found, near: Near, text: str) -> None:
        is_same = await self.comparer.is_same(found.question, near.record.question, near.record.answer.text, text)
        self._background(lambda store: store.observe(found.scope, near.entry_id, Observation(near.cosine, is_same)))
        # What was only explored was not served, and says nothing of what is.
        if found.outcome != "near":
            self.budgets.checked(found.scope, is_same=is_same, now=self._wall())
        if not is_same:
            logger.info("an answer for a question at cosine %.3f was not the model's", near.cosine)

    def _background(self, work: Callable[[VectorStore], Awaitable[object]]) -> None:
        store = self.store
        if store is None:
            return
        if self._guarded is not None:
            self._guarded.enqueue(lambda: work(store))
            return
        self._run(_done(work, store))

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        while self.store is None:
            try:
                # An endpoint tells with its first answer how long its vectors are.
                await self.embedder.embed([_FIRST_WORDS])
                self.store, self.server, self.advice = await self._open_store()
            except Exception as error:  # noqa: BLE001 - whatever Redis says, it is asked again
                logger.warning("no store for the semantic cache yet: %s", error)
                await self._sleep(_OPEN_AGAIN_S)
        logger.info("semantic cache: %s on %s, embedder %s", self.store.name, self.server, self.embedder.id)
        for sentence in self.advice:
            logger.warning("semantic cache: %s", sentence)


async def _remove(scope: str, entry_id: str, store: VectorStore) -> None:
    await store.remove(scope, [entry_id])


async def _done(work: Callable[[VectorStore], Awaitable[object]], store: VectorStore) -> None:
    """Begins the work in the task itself: one that is cancelled before it runs leaves no coroutine that nobody awaits."""
    await work(store)
