"""What a lookup in the prompt cache costs at the gateway's call: exact hits in the process and in Redis, and semantic hits and misses, embedding left out.

A semantic lookup searches, opens what it finds, and asks the guards; every hit is checked to be the entry that was nearest. No question is asked twice,
so that each is taken apart anew. Redis on loopback TCP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from gateway.cli.hardware import describe_hardware
from prompt_cache import CacheConfig, CachedAnswer, CachedDelta, CacheScope, PromptCache
from prompt_cache.embedding.embedder import Vector
from prompt_cache.keys import KeyMaker
from prompt_cache.semantic.config import SemanticConfig
from prompt_cache.semantic.lookup import Found, OpenedStore, Terms
from prompt_cache.semantic.records import Record, RecordCodec
from prompt_cache.semantic.semantic_cache import SemanticCache
from tests.bench.semantic.made_vectors import Rows, clustered, milliseconds, paraphrases
from tests.bench.semantic.vector_stores import make
from tests.fakes.redis_servers import SERVERS, RedisServer
from tests.fakes.semantic_parts import SCOPE, FakeEmbedder

RESULTS = Path(__file__).parents[1] / "results" / "cache_latency.json"
SECRET = b"0123456789abcdef"
KINDS = {"flat": "plain", "vector-sets": "vectors", "query-engine": "query-engine"}
# Of every entry, what is asked for it, and what the guards refuse.
QUESTION, SIMILAR, OTHER = "What is the capital of {}?", "What's the capital of {}?", "Who was the first king of {}?"
_WORDS = "answer " * 40
_FILLING_AT_ONCE = 16
# Filling a hundred thousand vectors makes single commands wait.
_PATIENT: dict[str, Any] = {"lookup_timeout_s": 60.0, "socket_timeout_s": 60.0}


def _answer(number: int) -> CachedAnswer:
    """Of 250 bytes or so, in deltas of a token each, as answers are kept."""
    deltas = tuple(CachedDelta(word + " ", (index,)) for index, word in enumerate(f"{number} {_WORDS}".split()))
    return CachedAnswer(deltas=deltas, finish_reason="stop", prompt_tokens=40, created_at=int(time.time()))


def _place(number: int) -> str:
    """A name for each number below a million, of letters alone: to the guards another number is another question."""
    return "".join("bdfgklmnrt"[number // 10**digit % 10] + "aeiou"[digit % 5] for digit in range(6)).capitalize()


async def _timed(operations: Sequence[Any]) -> tuple[list[float], list[Any]]:
    seconds, results = [], []
    for operation in operations:
        begin = time.perf_counter()
        results.append(await operation())
        seconds.append(time.perf_counter() - begin)
    return seconds, results


async def _exact(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    scope = CacheScope(tenant="a", model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"")
    figures: dict[str, Any] = {}
    for where, entries in (("in the process", 4096), ("in Redis", 0)):
        cache = PromptCache(CacheConfig(redis_url=url, secret=SECRET, l0_max_entries=entries, write_queue_len=4096, **_PATIENT))
        await cache.start()
        keys = [cache.key(scope, [number] * 40) for number in range(500)]
        for number, key in enumerate(keys):
            cache.put(key, _answer(number))
        await cache.drain()
        seconds, found = await _timed([partial(cache.get, key) for key in keys])
        assert [one.text.split()[0] for one in found] == [str(number) for number in range(500)], "every key has its own answer"
        figures[where] = milliseconds(seconds)
        missing = [cache.key(scope, [number] * 41) for number in range(500)]
        seconds, found = await _timed([partial(cache.get, key) for key in missing])
        assert not any(found)
        figures[f"miss, {where}"] = milliseconds(seconds)
        await cache.close()
    return figures


async def _hanging(server: RedisServer) -> dict[str, Any]:
    """What a Redis that hangs adds to requests that come one after the other, as the gateway asks it: the first few wait, then it is left alone."""
    cache = PromptCache(CacheConfig(redis_url=server.url, secret=SECRET))
    await cache.start()
    await cache.drain()
    scope = CacheScope(tenant="a", model="m", weights_revision="w", computation="c", tokenizer_sha256="t", sampling=b"")
    await cache.generation("a")
    server.pause()
    waits = []
    for number in range(200):
        begin, errors = time.perf_counter(), cache.errors
        await cache.generation("a")
        assert await cache.get(cache.key(scope, [number]), ask_redis=cache.errors == errors) is None
        waits.append(time.perf_counter() - begin)
    server.resume()
    await cache.close()
    return {**milliseconds(waits), "max_ms": round(1e3 * max(waits), 3), "waited_over_1_ms": sum(wait > 1e-3 for wait in waits)}


async def _semantic(name: str, url: str, arguments: argparse.Namespace, entries: int) -> dict[str, Any]:
    cache = PromptCache(CacheConfig(redis_url=url, secret=SECRET, **_PATIENT))
    await cache.start()
    assert cache.guarded is not None
    store = make(name, cache.guarded.redis, arguments)

    async def opened() -> OpenedStore:
        return OpenedStore(store, name, ())

    config = SemanticConfig(audited_share=0.0, lookup_timeout_s=5.0)
    semantic = SemanticCache(
        config, embedder=FakeEmbedder(), keys=KeyMaker(SECRET), all_secrets=(SECRET,), open_store=opened, guarded=cache.guarded
    )
    await semantic.start()
    await semantic.opened()
    scope, codec = semantic.scope_name(SCOPE), RecordCodec((SECRET,))
    rows = clustered(entries, arguments.dimensions, seed=0)
    await _fill(store, scope, codec, rows)
    queries = paraphrases(rows, arguments.searches, seed=1)
    exact = np.argmax(queries @ rows.T, axis=1)
    await _look(semantic, SIMILAR.format(_place(entries)), queries[0])
    asked = [(_place(nearest), query) for nearest, query in zip(exact, queries, strict=True)]
    seconds, found = await _timed([partial(_look, semantic, SIMILAR.format(place), query) for place, query in asked])
    right = sum(one.served is not None and one.served.entry_id == str(nearest) for one, nearest in zip(found, exact, strict=True))
    assert right >= 0.9 * len(queries), f"{right} of {len(queries)} found the nearest"
    figures: dict[str, Any] = {
        "store": name,
        "entries": entries,
        "hit": milliseconds(seconds),
        "nearest_found": round(right / len(queries), 4),
    }
    seconds, found = await _timed([partial(_look, semantic, OTHER.format(place), query) for place, query in asked])
    assert all(one.outcome == "near" for one in found)
    figures["near, refused by the guards"] = milliseconds(seconds)
    await semantic.drain()
    await semantic.close()
    await cache.close()
    return figures


async def _fill(store: Any, scope: str, codec: RecordCodec, rows: Rows) -> None:
    numbers = iter(range(len(rows)))

    async def worker() -> None:
        for number in numbers:
            data = codec.encode(scope, str(number), Record(question=QUESTION.format(_place(number)), answer=_answer(number)))
            await store.add(scope, str(number), rows[number], data, ttl_s=3600, saved_tokens=40)

    await asyncio.gather(*(worker() for _ in range(_FILLING_AT_ONCE)))


async def _look(semantic: SemanticCache, question: str, vector: Vector) -> Found:
    return await semantic.look(SCOPE, question, _ready(vector), Terms())


async def _ready(vector: Vector) -> Vector:
    return vector


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", nargs="+", default=["flat", "vector-sets", "query-engine"])
    parser.add_argument("--entries", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--searches", type=int, default=500)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    runs = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, tempfile.TemporaryDirectory() as folder:
        server = SERVERS["vectors"](Path(folder))
        try:
            exact = runner.run(_exact(server.url, arguments))
            hanging = runner.run(_hanging(server))
        finally:
            server.kill()
        print(json.dumps({"exact": exact, "hanging": hanging}))
        for entries in arguments.entries:
            for name in arguments.stores:
                with tempfile.TemporaryDirectory() as own:
                    server = SERVERS[KINDS[name]](Path(own))
                    try:
                        runs.append(runner.run(_semantic(name, server.url, arguments, entries)))
                    finally:
                        server.kill()
                print(json.dumps(runs[-1]), flush=True)
    document = {
        "what": "a lookup in the prompt cache at the gateway's call, embedding left out",
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": describe_hardware(),
        **{package: version(package) for package in ("triserve", "numpy", "redis", "hiredis", "uvloop")},
        "settings": {name: value for name, value in vars(arguments).items() if name != "output"},
        "exact": exact,
        "redis_hangs": hanging,
        "semantic": runs,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
