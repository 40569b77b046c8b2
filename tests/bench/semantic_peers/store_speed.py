"""Latency of redisvl's and GPTCache's semantic caches by number of entries, embedding left out: for `tests.bench.semantic.vector_stores`, which starts it.

Runs in the environment of requirements.txt. Prints a list of runs as JSON. Each cache is set up as its documentation shows it, with a time to live where
it has one, and answers are checked to be those of the nearest entry wherever it serves one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gptcache import Cache, Config
from gptcache.adapter.api import get, put
from gptcache.manager import CacheBase, VectorBase, get_data_manager
from gptcache.processor.pre import get_prompt
from gptcache.similarity_evaluation import SearchDistanceEvaluation
from redisvl.extensions.cache.llm import SemanticCache
from redisvl.utils.vectorize import CustomTextVectorizer

from tests.bench.semantic.made_vectors import Rows, clustered, milliseconds, paraphrases

# Cosine distance below which redisvl serves: all paraphrases, which are at 0.1.
_DISTANCE = 0.2

# A question's text is its vector's name: "kept 7" or "asked 7".
Keep = Callable[[str, str], None]
Ask = Callable[[str], str | None]


def measure(name: str, keep: Keep, ask: Ask, rows: Rows, queries: Rows, data: str) -> dict[str, Any]:
    """Fills a cache with the rows, then asks all queries one after the other."""
    adds = []
    for number in range(len(rows)):
        begin = time.perf_counter()
        keep(f"kept {number}", f"{number} {data}")
        adds.append(time.perf_counter() - begin)
    nearest = np.argmax(queries @ rows.T, axis=1)
    searches, served = [], 0
    for number in range(len(queries)):
        begin = time.perf_counter()
        answer = ask(f"asked {number}")
        searches.append(time.perf_counter() - begin)
        if answer is not None:
            assert answer.split(" ", 1)[0] == str(nearest[number]), "what is served is the nearest entry"
            served += 1
    package = {"store": name, "version": version(name), "entries": len(rows)}
    return {**package, "served": round(served / len(queries), 4), "search_1": milliseconds(searches), "add": milliseconds(adds[-300:])}


def redisvl(url: str, vector_of: Callable[[str], Any]) -> tuple[Keep, Ask]:
    """redisvl's SemanticCache on a server with the query engine."""
    vectorizer = CustomTextVectorizer(embed=lambda text, **_: vector_of(text).tolist())
    cache = SemanticCache(name="speed", redis_url=url, vectorizer=vectorizer, distance_threshold=_DISTANCE, ttl=3600)

    def keep(question: str, answer: str) -> None:
        cache.store(prompt=question, response=answer, vector=vector_of(question).tolist())

    def ask(question: str) -> str | None:
        hits = cache.check(prompt=question, vector=vector_of(question).tolist())
        return str(hits[0]["response"]) if hits else None

    return keep, ask


def gptcache(folder: Path, vector_of: Callable[[str], Any]) -> tuple[Keep, Ask]:
    """GPTCache with SQLite and FAISS."""
    cache = Cache()
    store = CacheBase("sqlite", sql_url=f"sqlite:///{folder}/cache.db")
    index = VectorBase("faiss", dimension=len(vector_of("kept 0")), index_path=str(folder / "faiss.index"))
    cache.init(
        pre_embedding_func=get_prompt,
        embedding_func=lambda text, **_: vector_of(text),
        data_manager=get_data_manager(store, index, max_size=10**7),
        similarity_evaluation=SearchDistanceEvaluation(),
        config=Config(similarity_threshold=0.8),
    )
    return (lambda question, answer: put(question, answer, cache_obj=cache)), (lambda question: get(question, cache_obj=cache))


def main() -> None:
    """Measures both and prints the runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--entries", type=int, required=True)
    parser.add_argument("--searches", type=int, required=True)
    parser.add_argument("--dimensions", type=int, required=True)
    parser.add_argument("--data-bytes", type=int, required=True)
    arguments = parser.parse_args()
    rows = clustered(arguments.entries, arguments.dimensions, seed=0)
    queries = paraphrases(rows, arguments.searches, seed=1)

    def vector_of(text: str) -> Any:
        kind, _, number = text.partition(" ")
        # redisvl embeds a text of its own to learn the number of dimensions.
        return (rows if kind != "asked" else queries)[int(number) if number.isdigit() else 0]

    # GPTCache writes its index once more when the process ends: whoever starts this removes the working directory. It also talks on stdout.
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    with contextlib.redirect_stdout(sys.stderr):
        data = "x" * arguments.data_bytes
        runs = [
            measure("redisvl", *redisvl(arguments.redis_url, vector_of), rows, queries, data),
            measure("gptcache", *gptcache(folder, vector_of), rows, queries, data),
        ]
    sys.stdout.write(json.dumps(runs) + "\n")


if __name__ == "__main__":
    main()
