"""Gathers texts that are embedded at once into batches, remembers vectors, and bounds what waits."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from prompt_cache.embedding.embedder import Embedder, EmbeddingFailed, TextRefused, Vector

_DIGEST_BYTES = 16
_KEY_BYTES = 32


@dataclass(kw_only=True)
class EmbeddingStats:
    """Counters since the start.

    Attributes:
        texts: Asked for.
        cached: Of these, found among the vectors that are remembered.
        shared: Of these, asked for while the same text was being embedded, and answered with it.
        skipped: Of those embedded, that got no vector: empty, too long, or with words unknown to the model.
        refused: Of these, because too many were waiting.
        batches: Given to the embedder.
        failures: Batches that failed.
        seconds: Spent by the embedder in batches.
    """

    texts: int = 0
    cached: int = 0
    shared: int = 0
    skipped: int = 0
    refused: int = 0
    batches: int = 0
    failures: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class _Waiting:
    """A text that is embedded or waits for it, and those who want its vector."""

    digest: bytes
    text: str
    callers: list[asyncio.Future[Vector | None]] = field(default_factory=list)

    def is_wanted(self) -> bool:
        return not all(caller.done() for caller in self.callers)

    def answer(self, vector: Vector | None) -> None:
        for caller in self.callers:
            if not caller.done():
                caller.set_result(vector)

    def fail(self, error: EmbeddingFailed) -> None:
        for caller in self.callers:
            if not caller.done():
                # Each caller gets its own: a traceback grows where an error is raised.
                failure = type(error)(*error.args)
                failure.__cause__ = error
                caller.set_exception(failure)


class EmbeddingQueue:
    """An embedder before another: one batch is computed at a time, and what arrives meanwhile is the next.

    An idle queue adds no waiting. Vectors are remembered under a keyed hash of the text, with a key of the process's own; the text is let go when it
    has its vector. Callers share vectors, which are read-only. For one event loop.

    Args:
        embedder: Computes vectors off the event loop. Closed with the queue.
        max_batch: Texts given to it at once. 1 for an embedder that computes one after the other: a batch would make the first wait for the last.
        max_waiting: Texts that may wait; one more fails.
        max_cached: Vectors remembered; the least recently used goes first. 0 = none.
        clock: Seconds, never falling.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        max_batch: int = 16,
        max_waiting: int = 256,
        max_cached: int = 4096,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        for name, value, least in (("max_batch", max_batch, 1), ("max_waiting", max_waiting, 1), ("max_cached", max_cached, 0)):
            if value < least:
                raise ValueError(f"{name} is {value}, the least is {least}")
        self._embedder = embedder
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._max_cached = max_cached
        self._clock = clock
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._cached: OrderedDict[bytes, Vector | None] = OrderedDict()
        self._unfinished: dict[bytes, _Waiting] = {}
        self._queue: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._is_closed = False
        self.stats = EmbeddingStats()

    @property
    def id(self) -> str:
        """The embedder's."""
        return self._embedder.id

    @property
    def dimensions(self) -> int:
        """The embedder's."""
        return self._embedder.dimensions

    @property
    def is_weak(self) -> bool:
        """The embedder's."""
        return self._embedder.is_weak

    @property
    def waiting(self) -> int:
        """Texts that wait for a batch."""
        return len(self._queue)

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """As the protocol says; a caller that is cancelled changes nothing for others."""
        if self._is_closed:
            raise EmbeddingFailed("the embedder is closed")
        self.stats.texts += len(texts)
        digests = [self._digest(text) for text in texts]
        found = {digest: self._recall(digest) for digest in digests if digest in self._cached}
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in found and digest not in self._unfinished}
        self._make_room(len(new))
        wanted: dict[bytes, asyncio.Future[Vector | None]] = {}
        for digest in digests:
            if digest in found:
                self.stats.cached += 1
            elif digest in wanted:
                self.stats.shared += 1
            else:
                wanted[digest] = self._join(digest, new.get(digest))
        if wanted:
            try:
                await asyncio.gather(*wanted.values())
            except EmbeddingFailed:
                # Others of this call may have failed too; nobody else hears of it.
                await asyncio.wait(wanted.values())
                for future in wanted.values():
                    future.exception()
                raise
        return [found[digest] if digest in found else wanted[digest].result() for digest in digests]

    async def close(self) -> None:
        """Fails what waits and what is being embedded, and closes the embedder."""
        self._is_closed = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        error = EmbeddingFailed("the embedder is closed")
        for waiting in list(self._unfinished.values()):
            waiting.fail(error)
        self._unfinished.clear()
        self._queue.clear()
        await self._embedder.close()

    def _digest(self, text: str) -> bytes:
        # Half a surrogate pair is no Unicode but can be in a str.
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES, key=self._key).digest()

    def _recall(self, digest: bytes) -> Vector | None:
        self._cached.move_to_end(digest)
        return self._cached[digest]

    def _remember(self, digest: bytes, vector: Vector | None) -> None:
        if not self._max_cached:
            return
        self._cached[digest] = vector
        if len(self._cached) > self._max_cached:
            self._cached.popitem(last=False)

    def _make_room(self, num_texts: int) -> None:
        """Returns if so many more texts may wait."""
        if len(self._queue) + num_texts > self._max_waiting:
            for waiting in self._queue:
                if not waiting.is_wanted():
                    self._unfinished.pop(waiting.digest)
            self._queue = deque(waiting for waiting in self._queue if waiting.digest in self._unfinished)
        if len(self._queue) + num_texts > self._max_waiting:
            self.stats.refused += num_texts
            raise EmbeddingFailed(f"{len(self._queue)} texts wait to be embedded, the most is {self._max_waiting}")

    def _join(self, digest: bytes, text: str | None) -> asyncio.Future[Vector | None]:
        """A future of the text's vector, with those who wait for the same; `text` is None if it is waiting already."""
        waiting = self._unfinished.get(digest)
        if waiting is None:
            assert text is not None, "a text that does not wait is new"
            waiting = self._unfinished[digest] = _Waiting(digest=digest, text=text)
            self._queue.append(waiting)
            if self._worker is None or self._worker.done():
                self._worker = asyncio.create_task(self._work(), name="embedding-queue")
        else:
            self.stats.shared += 1
        future: asyncio.Future[Vector | None] = asyncio.get_running_loop().create_future()
        waiting.callers.append(future)
        return future

    async def _work(self) -> None:
        """Embeds batches until nothing waits."""
        while self._queue:
            batch: list[_Waiting] = []
            while self._queue and len(batch) < self._max_batch:
                waiting = self._queue.popleft()
                if waiting.is_wanted():
                    batch.append(waiting)
                else:
                    del self._unfinished[waiting.digest]
            if batch:
                await self._embed_batch(batch)

    async def _embed_batch(self, batch: list[_Waiting]) -> None:
        """Answers or fails everybody who waits for a text of the batch."""
        try:
            vectors = await self._vectors([waiting.text for waiting in batch])
        except TextRefused as error:
            if len(batch) == 1:
                self._finish(batch[0]).fail(error)
                return
            # One text is at fault, and which is not known.
            for waiting in batch:
                await self._embed_batch([waiting])
        except EmbeddingFailed as error:
            for waiting in batch:
                self._finish(waiting).fail(error)
        else:
            for waiting, vector in zip(batch, vectors, strict=True):
                self.stats.skipped += vector is None
                self._remember(waiting.digest, vector)
                self._finish(waiting).answer(vector)

    async def _vectors(self, texts: Sequence[str]) -> list[Vector | None]:
        """One per text; EmbeddingFailed whatever the embedder does wrong."""
        self.stats.batches += 1
        start = self._clock()
        try:
            vectors = await self._embedder.embed(texts)
            if len(vectors) != len(texts):
                raise EmbeddingFailed(f"the embedder gave {len(vectors)} vectors for {len(texts)} texts")
        except EmbeddingFailed:
            self.stats.failures += 1
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not this queue is ended but what the embedder waits for: its thread was closed.
            self.stats.failures += 1
            raise EmbeddingFailed("the embedder gave up") from error
        except Exception as error:
            self.stats.failures += 1
            raise EmbeddingFailed(f"the embedder failed: {type(error).__name__}") from error
        finally:
            self.stats.seconds += self._clock() - start
        return vectors

    def _finish(self, waiting: _Waiting) -> _Waiting:
        del self._unfinished[waiting.digest]
        return waiting
