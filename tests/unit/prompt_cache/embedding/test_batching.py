"""Texts are batched, remembered and bounded, and no caller spoils another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from prompt_cache.embedding.batching import EmbeddingQueue
from prompt_cache.embedding.embedder import EmbeddingFailed, TextRefused, Vector


class ScriptedEmbedder:
    """Gives each text a vector that tells which it is, when it is allowed to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: Callable[[Sequence[str]], BaseException | None] = lambda texts: None
        self.is_closed = False

    id = "scripted"
    dimensions = 2
    is_weak = False

    async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        self.batches.append(list(texts))
        await self.gate.wait()
        error = self.fail(texts)
        if error is not None:
            raise error
        return [None if text == "" else vector_of(text) for text in texts]

    async def close(self) -> None:
        self.is_closed = True


def vector_of(text: str) -> Vector:
    vector: Vector = np.array([len(text), sum(map(ord, text))], np.float32)
    return vector


def same(vectors: Sequence[Vector | None], texts: Sequence[str]) -> bool:
    return [None if vector is None else vector.tolist() for vector in vectors] == [
        None if text == "" else vector_of(text).tolist() for text in texts
    ]


async def turns() -> None:
    """Lets tasks go as far as they can without the embedder."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_arrives_while_a_batch_is_computed_is_the_next_batch() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_batch=3)
    embedder.gate.clear()
    tasks = [asyncio.create_task(queue.embed(["a"]))]
    await turns()
    tasks += [asyncio.create_task(queue.embed([text])) for text in "bcde"]
    await turns()
    assert embedder.batches == [["a"]]
    assert queue.waiting == 4
    embedder.gate.set()
    answers = await asyncio.gather(*tasks)
    assert all(same(vectors, [text]) for vectors, text in zip(answers, "abcde", strict=True))
    assert embedder.batches == [["a"], ["b", "c", "d"], ["e"]]


async def test_an_idle_queue_waits_for_nothing() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder)
    assert same(await queue.embed(["a", "", "b"]), ["a", "", "b"])
    assert same(await queue.embed(["c"]), ["c"])
    assert embedder.batches == [["a", "", "b"], ["c"]]


async def test_a_text_is_embedded_once_and_then_remembered() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder)
    for _ in range(3):
        assert same(await queue.embed(["a", "a", ""]), ["a", "a", ""])
    assert embedder.batches == [["a", ""]]
    assert (queue.stats.texts, queue.stats.cached, queue.stats.shared, queue.stats.skipped) == (9, 6, 1, 1)


async def test_the_least_recently_used_vector_is_forgotten() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_cached=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        await queue.embed([text])
    assert embedder.batches == [["a"], ["b"], ["c"], ["b"]]


async def test_nothing_is_remembered_where_nothing_shall_be() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_cached=0)
    await queue.embed(["a"])
    await queue.embed(["a"])
    assert embedder.batches == [["a"], ["a"]]


async def test_no_text_is_kept_once_it_has_its_vector() -> None:
    queue = EmbeddingQueue(ScriptedEmbedder())
    await queue.embed(["a secret"])
    assert not queue._unfinished
    assert not queue._queue
    assert all(isinstance(key, bytes) and len(key) == 16 for key in queue._cached)
    other = EmbeddingQueue(ScriptedEmbedder())
    await other.embed(["a secret"])
    # Each process has a key of its own: a hash cannot be looked up in a list of guesses.
    assert set(other._cached) != set(queue._cached)


async def test_the_same_text_at_the_same_time_is_embedded_once() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder)
    embedder.gate.clear()
    tasks = [asyncio.create_task(queue.embed(["a"])) for _ in range(5)]
    await turns()
    embedder.gate.set()
    assert all(same(vectors, ["a"]) for vectors in await asyncio.gather(*tasks))
    assert embedder.batches == [["a"]]
    assert queue.stats.shared == 4


async def test_one_text_too_many_fails_at_once_and_is_counted() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_batch=1, max_waiting=2)
    embedder.gate.clear()
    tasks = [asyncio.create_task(queue.embed(["a"]))]
    await turns()
    tasks += [asyncio.create_task(queue.embed([text])) for text in "bc"]
    await turns()
    with pytest.raises(EmbeddingFailed, match=r"^2 texts wait to be embedded, the most is 2$"):
        await queue.embed(["d"])
    assert queue.stats.refused == 1
    # One that waits already takes no further place.
    tasks.append(asyncio.create_task(queue.embed(["c"])))
    await turns()
    embedder.gate.set()
    await asyncio.gather(*tasks)
    assert same(await queue.embed(["d"]), ["d"])


async def test_more_texts_than_may_wait_fail_together() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_waiting=2)
    with pytest.raises(EmbeddingFailed, match="0 texts wait"):
        await queue.embed(["a", "b", "c"])
    assert embedder.batches == []


async def test_a_caller_that_is_cancelled_spoils_no_other() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder)
    embedder.gate.clear()
    one, other = (asyncio.create_task(queue.embed(["a", text])) for text in "bc")
    await turns()
    one.cancel()
    await turns()
    embedder.gate.set()
    assert same(await other, ["a", "c"])
    assert one.cancelled()


async def test_a_text_that_nobody_waits_for_is_not_embedded_and_gives_its_place_back() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_batch=1, max_waiting=1)
    embedder.gate.clear()
    first = asyncio.create_task(queue.embed(["a"]))
    await turns()
    second = asyncio.create_task(queue.embed(["b"]))
    await turns()
    second.cancel()
    await turns()
    third = asyncio.create_task(queue.embed(["c"]))
    await turns()
    assert not third.done()
    third.cancel()
    await turns()
    embedder.gate.set()
    await first
    assert same(await queue.embed(["b"]), ["b"])
    assert embedder.batches == [["a"], ["b"]]


async def test_a_failure_reaches_those_of_its_batch_alone_and_the_next_is_tried() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_batch=2)
    embedder.fail = lambda texts: EmbeddingFailed("no vector") if "bad" in texts else None
    embedder.gate.clear()
    first = asyncio.create_task(queue.embed(["a"]))
    await turns()
    tasks = [asyncio.create_task(queue.embed([text])) for text in ("bad", "b", "c")]
    await turns()
    embedder.gate.set()
    await first
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(item) for item in found] == [EmbeddingFailed, EmbeddingFailed, list]
    assert queue.stats.failures == 1
    embedder.fail = lambda texts: None
    assert same(await queue.embed(["bad"]), ["bad"])


async def test_a_text_that_is_refused_fails_alone() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder)
    embedder.fail = lambda texts: TextRefused("status 400") if "bad" in texts else None
    embedder.gate.clear()
    first = asyncio.create_task(queue.embed(["a"]))
    await turns()
    tasks = [asyncio.create_task(queue.embed([text])) for text in ("b", "bad", "c")]
    await turns()
    embedder.gate.set()
    await first
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(item) for item in found] == [list, TextRefused, list]


@pytest.mark.parametrize("error", [ValueError("text: a"), RuntimeError("x")])
async def test_whatever_an_embedder_raises_is_a_failure_without_its_message(error: Exception) -> None:
    embedder = ScriptedEmbedder()
    embedder.fail = lambda texts: error
    queue = EmbeddingQueue(embedder)
    with pytest.raises(EmbeddingFailed, match=rf"^the embedder failed: {type(error).__name__}$"):
        await queue.embed(["a", "b"])
    embedder.fail = lambda texts: None
    assert same(await queue.embed(["a", "b"]), ["a", "b"])


async def test_an_embedder_that_gives_up_leaves_nobody_waiting() -> None:
    embedder = ScriptedEmbedder()
    embedder.fail = lambda texts: asyncio.CancelledError()
    queue = EmbeddingQueue(embedder)
    with pytest.raises(EmbeddingFailed, match="gave up"):
        await queue.embed(["a"])
    embedder.fail = lambda texts: None
    assert same(await queue.embed(["a"]), ["a"])


async def test_a_wrong_number_of_vectors_is_a_failure() -> None:
    class Miscounting(ScriptedEmbedder):
        async def embed(self, texts: Sequence[str]) -> list[Vector | None]:
            return (await super().embed(texts))[1:]

    with pytest.raises(EmbeddingFailed, match="gave 1 vectors for 2 texts"):
        await EmbeddingQueue(Miscounting()).embed(["a", "b"])


async def test_closing_fails_what_waits_and_closes_the_embedder() -> None:
    embedder = ScriptedEmbedder()
    queue = EmbeddingQueue(embedder, max_batch=1)
    embedder.gate.clear()
    tasks = [asyncio.create_task(queue.embed([text])) for text in "ab"]
    await turns()
    await queue.close()
    for found in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(found, EmbeddingFailed)
    assert embedder.is_closed
    with pytest.raises(EmbeddingFailed, match="closed"):
        await queue.embed(["c"])


async def test_seconds_and_batches_are_counted() -> None:
    times = iter([1.0, 1.5, 10.0, 12.0])
    queue = EmbeddingQueue(ScriptedEmbedder(), clock=lambda: next(times))
    await queue.embed(["a"])
    await queue.embed(["b"])
    assert (queue.stats.batches, queue.stats.seconds) == (2, 2.5)


async def test_half_a_surrogate_pair_is_a_text_like_another() -> None:
    assert len(await EmbeddingQueue(ScriptedEmbedder()).embed(["\ud800"])) == 1


async def test_it_is_to_callers_what_the_embedder_is() -> None:
    queue = EmbeddingQueue(ScriptedEmbedder())
    assert (queue.id, queue.dimensions, queue.is_weak) == ("scripted", 2, False)


@pytest.mark.parametrize(("name", "value"), [("max_batch", 0), ("max_waiting", 0), ("max_cached", -1)])
async def test_a_bound_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        EmbeddingQueue(ScriptedEmbedder(), **{name: value})  # type: ignore[arg-type]
