"""What a search and an add of each vector store cost, by number of entries: latency at the store's call, memory per entry, recall.

Vectors are made: clusters of questions, each query at a cosine of about 0.9 to one entry, as a paraphrase has. Every search is compared with the exact
answer, and what it finds is checked, before anything is reported. Run it on a quiet machine; the results file says what else may have run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from redis.asyncio import Redis

from gateway.cli.hardware import describe_hardware
from prompt_cache.embedding.embedder import Vector
from prompt_cache.vectors.flat import FlatStore
from prompt_cache.vectors.local import LocalStore
from prompt_cache.vectors.query_engine import QueryEngine
from prompt_cache.vectors.vector_sets import VectorSets
from prompt_cache.vectors.vector_store import StoreLimits, VectorStore
from tests.bench.semantic.made_vectors import Rows, clustered, milliseconds, paraphrases
from tests.fakes.redis_servers import SERVERS

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).parents[1] / "results" / "vector_stores.json"
SCOPE = "00ff"
_FILLING_AT_ONCE = 16


async def timed(operations: Sequence[Callable[[], Awaitable[Any]]]) -> tuple[list[float], list[Any]]:
    """Seconds and result of each operation, one after the other."""
    seconds, results = [], []
    for operation in operations:
        begin = time.perf_counter()
        results.append(await operation())
        seconds.append(time.perf_counter() - begin)
    return seconds, results


async def fill(store: VectorStore, rows: Rows, data: bytes) -> float:
    """Adds all rows; returns entries per second."""
    numbers = iter(range(len(rows)))

    async def worker() -> None:
        for number in numbers:
            await add(store, number, rows[number], data)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(_FILLING_AT_ONCE)))
    return len(rows) / (time.perf_counter() - begin)


async def add(store: VectorStore, number: int, vector: Vector, data: bytes) -> None:
    """Adds an entry whose data begin with its number."""
    await store.add(SCOPE, str(number), vector, b"%d " % number + data, ttl_s=3600, saved_tokens=100)


async def measure(store: VectorStore, redis: Redis | None, arguments: argparse.Namespace, entries: int) -> dict[str, Any]:
    """The figures of one store with so many entries."""
    empty = (await redis.info("memory"))["used_memory"] if redis is not None else 0
    rows = clustered(entries, arguments.dimensions, seed=0)
    data = os.urandom(arguments.data_bytes)
    filled = await fill(store, rows, data)
    full = (await redis.info("memory"))["used_memory"] if redis is not None else 0

    queries = paraphrases(rows, arguments.searches, seed=1)
    begin = time.perf_counter()
    await store.search(SCOPE, queries[0], 1)
    first_s = time.perf_counter() - begin
    figures: dict[str, Any] = {"entries": entries, "fill_per_s": round(filled, 1), "first_search_ms": round(1e3 * first_s, 3)}
    exact = np.argmax(queries @ rows.T, axis=1)
    for k in arguments.k:
        seconds, results = await timed([lambda query=query, k=k: store.search(SCOPE, query, k) for query in queries])  # type: ignore[misc]
        right = 0
        for query, nearest, hits in zip(queries, exact, results, strict=True):
            assert len(hits) == k, "every search finds as many as it asks for"
            for hit in hits:
                row = int(hit.entry_id)
                assert hit.data.startswith(b"%d " % row), "an entry comes with its own data"
                assert abs(hit.cosine - float(rows[row] @ query)) < 1e-3, "a cosine is that of numpy"
            right += hits[0].entry_id == str(nearest)
        figures[f"search_{k}"] = {**milliseconds(seconds), "recall_at_1": round(right / len(queries), 4)}
    more = clustered(arguments.adds, arguments.dimensions, seed=2)
    seconds, _ = await timed([lambda i=i: add(store, entries + i, more[i], data) for i in range(len(more))])  # type: ignore[misc]
    figures["add"] = milliseconds(seconds)
    seconds, _ = await timed([lambda i=i: store.hit(SCOPE, str(i)) for i in range(min(entries, arguments.adds))])  # type: ignore[misc]
    figures["hit"] = milliseconds(seconds)
    figures["redis_bytes_per_entry"] = round((full - empty) / entries)
    figures["process_bytes_per_entry"] = round(store.resident_bytes / entries) if isinstance(store, (FlatStore, LocalStore)) else 0
    return figures


def make(name: str, redis: Any, arguments: argparse.Namespace) -> VectorStore:
    """A store that never evicts."""
    limits = StoreLimits(max_entries=10**7, max_bytes=10**11, policy="lru")
    common: dict[str, Any] = {"dimensions": arguments.dimensions, "limits": limits}
    if name == "local":
        return LocalStore(**common, max_resident_bytes=10**11)
    if name == "flat":
        return FlatStore(redis, **common, max_resident_bytes=10**11)
    return VectorSets(redis, **common) if name == "vector-sets" else QueryEngine(redis, embedder_id="bench", **common)


async def on_server(name: str, arguments: argparse.Namespace, entries: int) -> dict[str, Any]:
    """The figures of one store on a server of its own."""
    kind = {"flat": "plain", "vector-sets": "vectors", "query-engine": "query-engine"}.get(name)
    if kind is None:
        return {"store": name, **await measure(make(name, None, arguments), None, arguments, entries)}
    with tempfile.TemporaryDirectory() as folder:
        server = SERVERS[kind](Path(folder))
        try:
            async with Redis.from_url(server.url) as redis:
                about = await redis.info("server")
                figures = await measure(make(name, redis, arguments), redis, arguments, entries)
        finally:
            server.kill()
    return {"store": name, "redis": about["redis_version"], **figures}


def peers(arguments: argparse.Namespace, entries: int) -> list[dict[str, Any]]:
    """The figures of redisvl and GPTCache, in a process of their own environment."""
    with tempfile.TemporaryDirectory() as folder:
        server = SERVERS["query-engine"](Path(folder))
        try:
            command = [str(arguments.peers_python), "-m", "tests.bench.semantic_peers.store_speed", "--redis-url", server.url]
            for name, value in {"entries": entries, "searches": arguments.searches, "dimensions": arguments.dimensions}.items():
                command += [f"--{name}", str(value)]
            command += ["--data-bytes", str(arguments.data_bytes)]
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"the peers' measurement failed:\n{done.stderr[-2000:]}")
        finally:
            server.kill()
    figures: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measures and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", nargs="+", default=["local", "flat", "vector-sets", "query-engine"])
    parser.add_argument("--entries", nargs="+", type=int, default=[1_000, 10_000])
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--data-bytes", type=int, default=2_000)
    parser.add_argument("--searches", type=int, default=1_000)
    parser.add_argument("--adds", type=int, default=300)
    parser.add_argument("--k", nargs="+", type=int, default=[1, 5])
    parser.add_argument(
        "--peers-python", type=Path, help="interpreter of the environment of semantic_peers: measures redisvl and GPTCache too"
    )
    parser.add_argument("--contended", action="store_true", help="other work ran on the machine: say so in the results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    runs = []
    for entries in arguments.entries:
        for name in arguments.stores:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runs.append(runner.run(on_server(name, arguments, entries)))
            print(json.dumps(runs[-1]), flush=True)
        if arguments.peers_python is not None:
            runs += peers(arguments, entries)
            print(json.dumps(runs[-2:]), flush=True)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output", "contended", "peers_python")}
    report = {
        "what": "latency of a vector store's calls, memory per entry and recall; Redis on loopback TCP",
        "contended": arguments.contended,
        **{package: version(package) for package in ("triserve", "numpy", "redis", "hiredis", "uvloop")},
        "hardware": describe_hardware(),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
